"""The node pack, loaded from its zip as ComfyUI loads a folder of custom_nodes, against a live service."""

import base64
import importlib.util
import inspect
import io
import json
import shutil
import sys
import types
from zipfile import ZipFile

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from scripts.build_integrations import build

EXPRESSION = '"a red circle" AND "a blue star"'
NODES = ["SuperdiffCompose", "SuperdiffInpaint", "SuperdiffDensity"]


def load(folder):
    """As ComfyUI's nodes.load_custom_node: by path, under a name made of it, registered before it is run."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    custom_nodes = tmp_path_factory.mktemp("custom_nodes")
    _, archive = build(tmp_path_factory.mktemp("dist"))
    with ZipFile(archive) as zipped:
        zipped.extractall(custom_nodes)
    return custom_nodes / "superdiff"


@pytest.fixture(scope="module")
def pack(folder):
    return load(folder)


def inputs(node):
    """Every input with its type and options, required ones first."""
    taken = node.INPUT_TYPES()
    assert set(taken) <= {"required", "optional", "hidden"}
    return {name: value for part in taken.values() for name, value in part.items()}


def defaults(node, **given):
    """What ComfyUI hands over: the widgets' values, and what is connected."""
    return {name: options["default"] for name, (_, options) in inputs(node).items() if "default" in options} | given


def execute(pack, name, **given):
    """As ComfyUI's execution: a new object, its FUNCTION called by keywords, a value for each output."""
    node = pack.NODE_CLASS_MAPPINGS[name]
    outputs = getattr(node(), node.FUNCTION)(**defaults(node, **given))
    assert isinstance(outputs, tuple)
    assert len(outputs) == len(node.RETURN_TYPES)
    return outputs


def test_three_nodes_have_names(pack):
    assert list(pack.NODE_CLASS_MAPPINGS) == NODES
    assert set(pack.NODE_DISPLAY_NAME_MAPPINGS) == set(NODES)


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_declared_as_comfyui_demands(pack, name):
    node = pack.NODE_CLASS_MAPPINGS[name]
    assert isinstance(inspect.getattr_static(node, "INPUT_TYPES"), classmethod)
    assert isinstance(node.RETURN_TYPES, tuple)
    assert len(node.RETURN_NAMES) == len(node.RETURN_TYPES)
    assert len(getattr(node, "OUTPUT_IS_LIST", node.RETURN_TYPES)) == len(node.RETURN_TYPES)
    assert node.CATEGORY == "superdiff"
    parameters = dict(inspect.signature(getattr(node, node.FUNCTION)).parameters)
    del parameters["self"]
    taken = node.INPUT_TYPES()
    assert list(parameters) == list(inputs(node))
    # What is optional may be left out, what is required may not.
    bare = {key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    assert bare == set(taken["required"])


@pytest.mark.parametrize("name", NODES)
def test_defaults_lie_in_their_ranges(pack, name):
    kinds = {"INT": int, "FLOAT": float, "STRING": str}
    for key, (kind, options) in inputs(pack.NODE_CLASS_MAPPINGS[name]).items():
        if kind in ("IMAGE", "MASK"):
            assert "default" not in options, key
            continue
        assert type(options["default"]) is kinds[kind], key
        if kind != "STRING":
            assert options["min"] <= options["default"] <= options["max"], key
            assert options["max"] < 2**53, f"{key}: no number of JavaScript's"
        parameter = inspect.signature(
            getattr(pack.NODE_CLASS_MAPPINGS[name], pack.NODE_CLASS_MAPPINGS[name].FUNCTION)
        ).parameters[key]
        assert parameter.default in (inspect.Parameter.empty, options["default"]), key


def test_the_ranges_are_those_of_the_service(pack, service):
    """Both ends are taken or refused by the service's own schema."""
    schema = httpx.get(f"{service.url}/openapi.json").json()["components"]["schemas"]["SuperposeRequest"]["properties"]

    def bound(field, side):
        options = [field, *field.get("anyOf", [])]
        return next(option[side] for option in options if side in option)

    compose = inputs(pack.NODE_CLASS_MAPPINGS["SuperdiffCompose"])
    for key, field in (("steps", "steps"), ("guidance", "guidance_scale"), ("candidates", "candidates"),
                       ("width", "width"), ("height", "height"), ("num_images", "num_images")):  # fmt: skip
        assert compose[key][1]["max"] == bound(schema[field], "maximum"), key
    assert compose["seed"][1]["max"] == bound(schema["seed"], "exclusiveMaximum") - 1


def answer(service, **body):
    whole = {"expression": EXPRESSION, "steps": 3, "seed": 7} | body
    told = httpx.post(f"{service.url}/v1/superpose", json=whole, timeout=60)
    assert told.status_code == 200, told.text
    files = [base64.b64decode(image["b64_json"]) for image in told.json()["images"]]
    return np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]), told.json()


def levels(image):
    """An IMAGE in 255ths; it is checked to be one."""
    assert image.dtype == torch.float32
    assert image.ndim == 4
    assert 0 <= image.min() <= image.max() <= 1
    exact = image.numpy() * 255
    np.testing.assert_allclose(exact, exact.round(), atol=1e-3)
    return exact.round().astype(np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_compose_gives_the_service_s_pictures_as_a_batch(pack, service):
    given = {"expression": EXPRESSION, "url": service.url, "seed": 7, "steps": 3}
    image, info = execute(pack, "SuperdiffCompose", **given, guidance=3.0, candidates=2, num_images=2, width=64)
    pictures, told = answer(service, guidance_scale=3.0, candidates=2, num_images=2, width=64)
    np.testing.assert_array_equal(levels(image), pictures)
    read = json.loads(info)
    assert [i["seed"] for i in read["images"]] == [7, 8]
    assert [i["lift"] for i in read["images"]] == [i["lift"] for i in told["images"]]


def test_what_is_not_chosen_is_the_model_s(pack, service):
    image, _ = execute(pack, "SuperdiffCompose", url=service.url, expression="a red circle", seed=1)
    pictures, _ = answer(service, expression="a red circle", seed=1, steps=None)
    np.testing.assert_array_equal(levels(image), pictures)


@pytest.fixture(scope="module")
def batch():
    """Two pictures, and a mask of another size: its left half."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    mask = torch.zeros(1, 24, 32)
    mask[:, :, :16] = 1
    return pictures, torch.from_numpy(pictures.astype(np.float32) / 255), mask


def test_inpaint_paints_each_picture_of_a_batch_where_the_mask_is_white(pack, service, batch):
    pictures, image, mask = batch
    given = {"expression": EXPRESSION, "url": service.url, "seed": 7, "steps": 3, "strength": 0.8}
    (painted,) = execute(pack, "SuperdiffInpaint", image=image, mask=mask, **given)
    found = levels(painted)
    large = torch.nn.functional.interpolate(mask[None], (48, 64), mode="bilinear")[0, 0]
    sent = (large * 255).round().numpy().astype(np.uint8)
    for i in range(2):
        (wanted,), _ = answer(service, image=png(pictures[i]), mask=png(sent), strength=0.8, seed=7 + i)
        np.testing.assert_array_equal(found[i], wanted)
    np.testing.assert_array_equal(found[:, sent == 0], pictures[:, sent == 0])
    assert (found[:, sent == 255] != pictures[:, sent == 255]).any()


def test_density_tells_which_prompt_explains_a_picture(pack, service):
    drawn, _ = execute(pack, "SuperdiffCompose", url=service.url, expression="a red circle", seed=1, steps=20)
    either = '"a red circle" OR "a green triangle"'
    given = {"expression": either, "url": service.url, "seed": 3, "steps": 10, "draws": 2}
    report, posterior, log_density = execute(pack, "SuperdiffDensity", image=drawn, **given)
    body = {"expression": either, "seed": 3, "steps": 10, "draws": 2, "image": png(levels(drawn)[0])}
    told = httpx.post(f"{service.url}/v1/density", json=body, timeout=60).json()["explanations"]
    assert posterior == [told[name]["posterior"] for name in ("a red circle", "a green triangle")]
    assert log_density == [told[name]["log_density"] for name in ("a red circle", "a green triangle")]
    assert posterior[0] > posterior[1]
    assert [line.split(":")[0] for line in report.splitlines()] == ["1  a red circle", "1  a green triangle"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"expression": "a AND (b OR"}, r"^expression: at column 12: expected a prompt"),
        ({"expression": '"a"@nobody'}, "nobody"),
        ({"url": "http://127.0.0.1:9"}, r"^superdiff-serve does not answer at http://127\.0\.0\.1:9 \("),
        ({"url": "nowhere"}, r"^the address of the service must look like http://127\.0\.0\.1:8000, not 'nowhere'$"),
    ],
)
@pytest.mark.parametrize("name", NODES)
def test_what_goes_wrong_is_an_exception_in_plain_words(pack, service, batch, name, given, said):
    _, image, mask = batch
    connected = {"SuperdiffInpaint": {"image": image, "mask": mask}, "SuperdiffDensity": {"image": image}}
    with pytest.raises(Exception, match=said) as caught:
        execute(pack, name, **{"url": service.url} | connected.get(name, {}) | given)
    assert type(caught.value).__name__ == "ServiceError"


def test_a_black_mask_is_refused(pack, service, batch):
    _, image, mask = batch
    with pytest.raises(ValueError, match="mask 1 is black everywhere: make white what is to be painted anew"):
        execute(pack, "SuperdiffInpaint", image=image, mask=mask * 0, url=service.url)


class InterruptProcessingException(Exception):  # noqa: N818
    """ComfyUI's own has this name."""


def test_comfyui_s_cancel_cancels_on_the_server_and_its_bar_moves(folder, service, monkeypatch, tmp_path):
    """With the two functions of ComfyUI that the pack uses; ComfyUI itself is not here."""
    moves = []

    class ProgressBar:
        def __init__(self, total):
            self.total = total

        def update_absolute(self, value, total=None, preview=None):
            moves.append((value, total))

    def throw_exception_if_processing_interrupted():
        if moves and moves[-1][0] > 0:
            raise InterruptProcessingException

    comfy, management, utils = (types.ModuleType(n) for n in ("comfy", "comfy.model_management", "comfy.utils"))
    management.throw_exception_if_processing_interrupted = throw_exception_if_processing_interrupted
    utils.ProgressBar = ProgressBar
    for module in (comfy, management, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(InterruptProcessingException):
        execute(load(shutil.copytree(folder, tmp_path / "superdiff")), "SuperdiffCompose", url=service.url, steps=999)
    assert moves[-1][1] == 999
    jobs = httpx.get(f"{service.url}/v1/jobs").json()["data"]
    assert [job["status"] for job in jobs if job["steps"] == 999] == ["cancelled"]
