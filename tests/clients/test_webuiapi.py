"""The AUTOMATIC1111 dialect as its own client package speaks it, over a real server and the models that ship."""

import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import webuiapi
from PIL import Image

from pipelines.kernel import Kernel

SIZE = {"width": 64, "height": 64}
QUICK = SIZE | {"steps": 3, "seed": 7}
LONG = SIZE | {"steps": 1000}
PROMPT = "a red circle"


def client(server, *auth):
    username, password = auth or (None, None)
    return webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", username=username, password=password)


@pytest.fixture
def api(server):
    return client(server)


def pixels(image):
    return np.asarray(image.convert("RGB"), dtype=int)


def native(server, expression, **given):
    """The picture that the native API draws for the same."""
    body = {"expression": expression, "guidance_scale": 7.0} | given
    answer = httpx.post(f"{server.url}/v1/superpose", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return [pixels(Image.open(io.BytesIO(base64.b64decode(i["b64_json"])))) for i in answer.json()["images"]]


def until(condition, seconds=60):
    for _ in range(int(seconds / 0.05)):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came to be")


def refused(call, status):
    """The document of a refusal, as the client raises it."""
    with pytest.raises(RuntimeError) as raised:
        call()
    assert raised.value.args[0] == status, raised.value
    document = json.loads(raised.value.args[1])
    assert set(document) == {"error", "detail", "body", "errors"}
    return document


@pytest.mark.parametrize(
    ("prompt", "expression"),
    [
        (PROMPT, '"a red circle"'),
        ("a red circle AND a blue star", '"a red circle" AND "a blue star"'),
        ("(a red circle OR a star) :3 AND a square", '("a red circle" OR "a star"):3 AND "a square"'),
        ("a cat, (masterpiece:1.2), [blurry]", '"a cat, (masterpiece:1.2), [blurry]"'),
        ('a sign "STOP AND GO"', r'"a sign \"STOP AND GO\""'),
    ],
)
def test_a_prompt_is_drawn_as_the_native_api_draws_it(server, api, prompt, expression):
    result = api.txt2img(prompt=prompt, **QUICK)
    (same,) = native(server, expression, **QUICK)
    np.testing.assert_array_equal(pixels(result.image), same)
    assert result.info["all_prompts"] == [prompt]
    assert result.parameters["prompt"] == prompt


def test_batches_are_images_with_seeds_of_their_own(server, api):
    result = api.txt2img(prompt=PROMPT, negative_prompt="a star", cfg_scale=3.0, batch_size=1, n_iter=2, **QUICK)
    same = native(server, f'"{PROMPT}"', num_images=2, negative_prompt="a star", **QUICK | {"guidance_scale": 3.0})
    assert result.info["all_seeds"] == [7, 8]
    assert (result.info["cfg_scale"], result.info["batch_size"], len(result.info["infotexts"])) == (3.0, 1, 2)
    for drawn, expected in zip(result.images, same, strict=True):
        np.testing.assert_array_equal(pixels(drawn), expected)


def test_a_drawn_seed_gives_the_same_picture_again(api):
    first = api.txt2img(prompt=PROMPT, **QUICK | {"seed": -1})
    (seed,) = first.info["all_seeds"]
    again = api.txt2img(prompt=PROMPT, **QUICK | {"seed": seed})
    np.testing.assert_array_equal(pixels(first.image), pixels(again.image))
    assert api.txt2img(prompt=PROMPT, **QUICK | {"seed": -1}).info["seed"] != seed


def test_the_model_the_kernel_and_the_grid_can_be_named(server, api):
    override = {"sd_model_checkpoint": "shapes-sharp [0a1b2c3d4e]", "CLIP_stop_at_last_layers": 2}
    named = api.txt2img(prompt=PROMPT, override_settings=override, sampler_name="Deterministic", **QUICK)
    (same,) = native(server, '"a red circle"@shapes-sharp', kernel="deterministic", **QUICK)
    np.testing.assert_array_equal(pixels(named.image), same)
    assert (named.info["sd_model_name"], named.info["sampler_name"]) == ("shapes-sharp", "deterministic")
    linear = api.txt2img(prompt=PROMPT, scheduler="Linear", **QUICK)
    assert (pixels(linear.image) != pixels(api.txt2img(prompt=PROMPT, scheduler="Karras", **QUICK).image)).any()


def test_the_script_composes_models(server, api):
    script = {"superdiff": {"args": [{"operator": "or", "models": ["shapes", "shapes-round"], "temperature": 2.0}]}}
    result = api.txt2img(prompt=PROMPT, alwayson_scripts=script, **QUICK)
    (same,) = native(server, '"a red circle" OR[temperature=2] "a red circle"@shapes-round', **QUICK)
    np.testing.assert_array_equal(pixels(result.image), same)


def test_the_script_s_arguments_may_stand_in_their_order(server, api):
    script = {"superdiff": {"args": ["AND", None, "balanced", None, None, 1.5, 2]}}
    result = api.txt2img(prompt="a red circle OR a blue star", alwayson_scripts=script, **QUICK)
    (same,) = native(server, '"a red circle":1.5 AND[balanced] "a blue star"', candidates=2, **QUICK)
    np.testing.assert_array_equal(pixels(result.image), same)


def test_pictures_can_be_left_out(api):
    result = api.txt2img(prompt=PROMPT, send_images=False, **QUICK)
    assert (result.images, result.info["seed"]) == ([], 7)


def photo(width=64, height=64):
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask_of(size, box):
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def test_image_to_image_keeps_as_much_as_the_strength_says(server, api):
    image = photo()
    result = api.img2img(images=[image], prompt=PROMPT, denoising_strength=0.5, **QUICK)
    (same,) = native(server, '"a red circle"', image=webuiapi.raw_b64_img(image), strength=0.5, **QUICK)
    np.testing.assert_array_equal(pixels(result.image), same)
    assert result.parameters["init_images"] is None
    untouched = api.img2img(images=[image], prompt=PROMPT, denoising_strength=0.0, **QUICK)
    np.testing.assert_array_equal(pixels(untouched.image), pixels(image))
    assert len(api.img2img(images=[image], include_init_images=True, **QUICK).parameters["init_images"]) == 1


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("invert", [0, 1])
@pytest.mark.parametrize("mask_size", [(64, 64), (128, 128)])
def test_outside_of_the_mask_every_pixel_is_kept(api, full, invert, mask_size):
    image, painted = photo(), np.zeros((64, 64), dtype=bool)
    painted[16:40, 8:40] = True
    scale = mask_size[0] // 64
    mask = mask_of(mask_size, tuple(side * scale for side in (8, 16, 40, 40)))
    if invert:
        painted = ~painted
    given = {"mask_image": mask, "inpainting_mask_invert": invert, "inpaint_full_res": full, "denoising_strength": 1.0}
    result = pixels(api.img2img(images=[image], prompt=PROMPT, mask_blur=0, **given, **QUICK).image)
    np.testing.assert_array_equal(result[~painted], pixels(image)[~painted])
    assert (result[painted] != pixels(image)[painted]).any(-1).mean() > 0.9


def test_a_region_of_a_large_picture_is_sampled_at_the_size_asked_for(api):
    """A picture of 200×120 that no model here samples: only the region with its padding is, at 64×64."""
    image, mask = photo(200, 120), mask_of((200, 120), (150, 60, 182, 92))
    given = {"mask_image": mask, "inpaint_full_res": True, "inpaint_full_res_padding": 8, "mask_blur": 4}
    result = api.img2img(images=[image], prompt=PROMPT, denoising_strength=1.0, **given, **QUICK)
    assert (result.image.size, result.info["width"], result.info["height"]) == ((200, 120), 200, 120)
    drawn, before, inside = pixels(result.image), pixels(image), np.asarray(mask) > 0
    np.testing.assert_array_equal(drawn[~inside], before[~inside])
    # What was sampled replaces the noise wholly in the middle, and blends in at the border.
    changed = np.abs(drawn - before).mean(-1)
    assert changed[68:84, 158:174].mean() > 2 * changed[60, 150:182].mean() > 0


def test_transparent_pixels_of_a_mask_are_kept(api):
    image, mask = photo(), Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 32, 64))
    result = pixels(api.img2img(images=[image], mask_image=mask, inpaint_full_res=False, mask_blur=0, **QUICK).image)
    np.testing.assert_array_equal(result[:, 32:], pixels(image)[:, 32:])
    assert (result[:, :32] != pixels(image)[:, :32]).any()


def test_a_picture_tells_what_it_was_made_of_and_makes_the_same_again(api):
    drawn = api.txt2img(prompt="a red circle AND a blue star", negative_prompt="a grün ☆", **QUICK)
    told = api.png_info(drawn.image)
    (text,) = drawn.info["infotexts"]
    assert told.info == text
    read = told.parameters
    assert (read["Negative prompt"], read["Seed"], read["Size-1"], read["Model"]) == ("a grün ☆", "7", "64", "shapes")
    again = api.txt2img(
        prompt=read["Prompt"],
        negative_prompt=read["Negative prompt"],
        steps=int(read["Steps"]),
        cfg_scale=float(read["CFG scale"]),
        sampler_name=read["Sampler"],
        seed=int(read["Seed"]),
        **SIZE,
    )
    np.testing.assert_array_equal(pixels(again.image), pixels(drawn.image))
    assert api.png_info(photo()).info == ""


def test_progress_tells_how_far_the_caller_s_job_is(server):
    api = client(server, "watcher", "secret")
    idle = api.get_progress()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(api.txt2img, prompt=PROMPT, **SIZE, steps=60)
        first = until(lambda: (told := api.get_progress())["state"]["sampling_step"] > 0 and told)
        assert (first["state"]["job_count"], first["state"]["sampling_steps"]) == (1, 60)
        # Others' progress is not this caller's business, nor is this caller's theirs.
        assert client(server, "stranger", "secret").get_progress()["state"]["job_count"] == 0
        shown = until(lambda: (told := api.get_progress())["current_image"] and told)
        assert 0 < first["progress"] < shown["progress"] < 1
        assert shown["eta_relative"] > 0
        preview = Image.open(io.BytesIO(base64.b64decode(shown["current_image"])))
        assert preview.width > 0
        assert len(running.result(60).images) == 1
    api.util_wait_for_ready(check_interval=0.1)


def test_interrupt_ends_the_caller_s_own_jobs_and_no_other(server):
    mine, other = client(server, "me", "secret"), client(server, "other", "secret")
    with ThreadPoolExecutor(2) as pool:
        stopped = pool.submit(mine.txt2img, prompt=PROMPT, **LONG)
        goes_on = pool.submit(other.txt2img, prompt=PROMPT, **LONG)
        until(lambda: all(api.get_progress()["state"]["job_count"] for api in (mine, other)))
        assert mine.interrupt() == {}
        result = stopped.result(30)
        assert (result.images, result.info["interrupted"], result.info["infotexts"]) == ([], True, [])
        assert mine.get_progress()["state"]["job_count"] == 0
        assert other.get_progress()["state"]["job_count"] == 1
        assert not goes_on.done()
        assert other.skip() is None
        assert goes_on.result(30).info["interrupted"]


def test_a_task_of_a_name_is_followed_and_ended_alone(server):
    api = client(server, "tasks", "secret")

    def follow(name, seen=-1):
        body = {"id_task": name, "id_live_preview": seen}
        return api.session.post(f"{server.url}/internal/progress", json=body).json()

    def draw(name):
        return api.session.post(f"{api.baseurl}/txt2img", json=LONG | {"prompt": PROMPT, "force_task_id": name}).json()

    assert not any(follow("task(a)")[state] for state in ("active", "queued", "completed"))
    with ThreadPoolExecutor(2) as pool:
        drawn = {name: pool.submit(draw, name) for name in ("task(a)", "task(b)")}
        until(lambda: follow("task(a)")["active"] and follow("task(b)")["active"])
        shown = until(lambda: (told := follow("task(a)"))["live_preview"] and told)
        assert shown["live_preview"].startswith("data:image/jpeg;base64,")
        assert 0 < shown["progress"] < 1
        assert follow("task(a)", shown["id_live_preview"])["id_live_preview"] >= shown["id_live_preview"]
        # Another caller's task of the same name is another task.
        stranger = client(server, "stranger", "secret")
        stranger.session.post(f"{api.baseurl}/interrupt", json={"force_task_id": "task(a)"})
        assert follow("task(a)")["active"]
        api.session.post(f"{api.baseurl}/interrupt", json={"force_task_id": "task(a)"})
        assert json.loads(drawn["task(a)"].result(30)["info"])["interrupted"]
        assert follow("task(a)")["completed"]
        assert follow("task(b)")["active"]
        api.interrupt()
        drawn["task(b)"].result(30)


def test_every_caller_has_a_model_of_its_own(server):
    mine, other = client(server, "chooser", "secret"), client(server, "chooser", "other secret")
    mine.util_set_model("shapes-round")
    assert mine.util_get_current_model() == "shapes-round"
    assert other.util_get_current_model() == "shapes"
    assert mine.set_options({"sd_model_checkpoint": "shapes-sharp.safetensors", "unknown": 1}) is None
    assert client(server, "chooser", "secret").util_get_current_model() == "shapes-sharp"
    drawn = {api: api.txt2img(prompt=PROMPT, **QUICK).info["sd_model_name"] for api in (mine, other)}
    assert list(drawn.values()) == ["shapes-sharp", "shapes"]
    assert "errors" in mine.set_options({"sd_model_checkpoint": "none"})


def test_the_lists(api):
    assert api.util_get_model_names() == ["shapes", "shapes-round", "shapes-sharp"]
    for model in api.get_sd_models():
        assert set(model) == {"title", "model_name", "hash", "sha256", "filename", "config"}
        assert model["filename"] == model["title"]
    assert api.util_get_sampler_names() == sorted(Kernel)
    assert "automatic" in api.util_get_scheduler_names()
    assert api.get_scripts() == {"txt2img": ["superdiff"], "img2img": ["superdiff"]}
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_cmd_flags() == {}
    assert api.get_memory()["ram"]["total"] > 0
    assert [upscaler["name"] for upscaler in api.get_upscalers()] == ["None"]
    empty = ["latent_upscale_modes", "sd_vae", "prompt_styles", "loras", "hypernetworks", "face_restorers"]
    assert [getattr(api, f"get_{name}")() for name in [*empty, "realesrgan_models"]] == [[]] * 7
    assert api.refresh_checkpoints() is None
    info = api.custom_get("sdapi/v1/script-info")
    assert [script["is_img2img"] for script in info] == [False, True]
    arguments = {argument["label"]: argument for argument in info[0]["args"]}
    assert next(iter(arguments)) == "operator"
    assert arguments["method"]["choices"] == ["soft", "balanced"]
    assert (arguments["candidates"]["minimum"], arguments["candidates"]["maximum"]) == (1, 16)


@pytest.mark.parametrize(
    ("given", "status", "told"),
    [
        ({"steps": 0}, 422, "steps"),
        ({"steps": "many"}, 422, "steps"),
        ({"seed": -2}, 422, "seed"),
        ({"cfg_scale": 101}, 422, "cfg_scale"),
        ({"batch_size": 9, "n_iter": 9}, 422, "batch_size × n_iter must be at most 64"),
        ({"width": 63}, 422, "width must be a positive multiple of 16"),
        ({"prompt": "a AND (b"}, 422, "prompt: at column 9"),
        ({"prompt": "a AND b@none"}, 404, "prompt: at column 8: no model named 'none'"),
        ({"prompt": "a <lora:ink:0.8>"}, 422, "prompt: the model 'shapes' has no LoRA 'ink'"),
        ({"override_settings": {"sd_model_checkpoint": "none"}}, 404, "override_settings.sd_model_checkpoint"),
        ({"alwayson_scripts": {"superdiff": {"args": [{"temprature": 1}]}}}, 422, "superdiff.temprature"),
        ({"alwayson_scripts": {"superdiff": {"args": [{"temperature": 1}]}}}, 422, "temperature has nothing to act on"),
    ],
)
def test_a_refusal_names_the_field_in_the_dialect_s_own_words(api, given, status, told):
    document = refused(lambda: api.txt2img(**QUICK | {"prompt": PROMPT} | given), status)
    assert told in document["detail"]
    assert told in document["errors"]


def test_pictures_that_cannot_be_had_are_refused(api, server):
    assert "init_images" in refused(lambda: api.img2img(images=[], **QUICK), 422)["detail"]
    assert "init_images" in refused(lambda: api.img2img(images=[photo(), photo()], **QUICK), 422)["detail"]
    body = QUICK | {"init_images": ["http://127.0.0.1/a.png"]}
    answer = httpx.post(f"{server.url}/sdapi/v1/img2img", json=body)
    assert (answer.status_code, set(answer.json())) == (422, {"error", "detail", "body", "errors"})
    assert "URLs are not fetched" in answer.json()["detail"]


def test_what_clients_send_besides_is_accepted_and_echoed(api):
    more = {"enable_hr": True, "hr_scale": 3, "styles": ["x"], "mask": None, "refiner": {"a": 1}}
    body = QUICK | more | {"prompt": PROMPT}
    answer = api.session.post(f"{api.baseurl}/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()["parameters"]
    assert (told["hr_scale"], told["styles"], told["refiner"]) == (3, ["x"], {"a": 1})
    assert answer.headers["x-superdiff-id"]
