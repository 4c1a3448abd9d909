/** Whether the service answers. While it does not, a banner says so and it is asked again, ever more rarely. */

import * as api from "./api.js";
import { $, show } from "./dom.js";

const AGAIN_MS = [1000, 2000, 4000, 8000];
const returned = [];
let asking = false;

/** Call a function whenever the service answers again. */
export const onReturn = (listener) => returned.push(listener);

/** Tell whether the service was seen; asks again by itself until it is. */
export async function seen(up) {
  show($("connection"), !up);
  if (up || asking) return;
  asking = true;
  for (let tries = 0; ; tries += 1) {
    await api.pause(AGAIN_MS[Math.min(tries, AGAIN_MS.length - 1)]);
    try {
      await api.models();
      break;
    } catch (error) {
      if (error instanceof api.Problem && error.status < 500) break;
    }
  }
  asking = false;
  show($("connection"), false);
  for (const listener of returned) listener();
}

/** Run a call; where nobody answers, say so. Other errors are the caller's. */
export async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error instanceof api.Unreachable) seen(false);
    throw error;
  }
}
