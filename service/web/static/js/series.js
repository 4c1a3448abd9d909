/** Lines for the charts out of a job's points: the mean over the samples of one picture. */

/**
 * @param {{step: number, weight: number[][], log_density: (number|null)[][]}[]} points In order of their steps.
 * @param {{steps: number, components: number, images: number|null, image: number, candidates: number|null, candidate: number|null}} of
 *   Which picture; what is null is not known, and the mean is over more.
 * @returns {{weight: (number|null)[][], density: (number|null)[][]}} One line a component; density is less the mean
 *   over the components, since only differences between components mean something.
 */
export function series(points, of) {
  const lines = () => Array.from({ length: of.components }, () => Array(of.steps).fill(null));
  const weight = lines();
  const density = lines();
  for (const point of points) {
    const weights = means(chosen(point.kappa, of));
    const densities = means(chosen(point.log_density, of).map(centred));
    for (let i = 0; i < of.components; i += 1) {
      weight[i][point.step - 1] = weights[i] ?? null;
      density[i][point.step - 1] = densities[i] ?? null;
    }
  }
  return { weight, density };
}

/** The rows of a picture. Samples are in the order of images, in an image of candidates, then of particles. */
function chosen(rows, { images, image, candidates, candidate }) {
  if (!images || rows.length % images) return rows;
  const perImage = rows.length / images;
  const ofImage = rows.slice(image * perImage, (image + 1) * perImage);
  if (!candidates || candidate === null || perImage % candidates) return ofImage;
  const perCandidate = perImage / candidates;
  return ofImage.slice(candidate * perCandidate, (candidate + 1) * perCandidate);
}

function centred(row) {
  if (row.includes(null)) return row.map(() => null);
  const mean = row.reduce((sum, value) => sum + value, 0) / row.length;
  return row.map((value) => value - mean);
}

function means(rows) {
  return (rows[0] ?? []).map((_, i) => {
    const known = rows.map((row) => row[i]).filter((value) => value !== null);
    return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
  });
}
