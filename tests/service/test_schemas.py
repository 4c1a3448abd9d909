from pipelines.card import Defaults
from pipelines.composition import And, Method, Or, Prompt
from pipelines.kernel import Kernel
from pipelines.params import SamplingParams
from service.schemas.requests import AndRequest, DensityRequest, OrRequest, SuperposeRequest

DEFAULTS = Defaults(steps=25, guidance_scale=4.0, kernel=Kernel.CALIBRATED)


def test_a_bare_string_is_a_prompt_to_the_default_model():
    request = OrRequest(components=["a cat", {"prompt": "a dog", "model": "sd", "weight": 0.5}], temperature=2)
    assert request.written(("shapes", "sd")).expression == Or(
        (Prompt("a cat", "shapes"), Prompt("a dog", "sd")), 2.0, (0.0, 0.5)
    )


def test_lift_adds_to_the_first_component_s_weight():
    request = AndRequest(components=[{"prompt": "a", "weight": 1}, "b"], lift=2, method="balanced")
    expected = And((Prompt("a", "m"), Prompt("b", "m")), (3.0, 0.0), Method.BALANCED)
    assert request.written(("m",)).expression == expected


def test_the_defaults_are_the_science_s_own():
    """What a request does not say is what the node has where it is not told."""
    a, b = Prompt("a", "m"), Prompt("b", "m")
    assert AndRequest(components=["a", "b"]).written(("m",)).expression == And((a, b))
    assert OrRequest(components=["a", "b"]).written(("m",)).expression == Or((a, b))
    params = SuperposeRequest(expression="a").params(DEFAULTS)
    plain = SamplingParams()
    assert (params.candidates, params.select, params.particles) == (plain.candidates, plain.select, plain.particles)


def test_a_seed_is_drawn_where_none_is_given():
    seeds = {OrRequest(components=["a"]).params(DEFAULTS).seed for _ in range(8)}
    assert len(seeds) == 8
    assert OrRequest(components=["a"], seed=0).params(DEFAULTS).seed == 0


def test_what_is_not_said_is_as_the_model_has_it():
    told = OrRequest(components=["a"], steps=7, kernel="posterior").params(DEFAULTS)
    assert (told.steps, told.guidance_scale, told.kernel) == (7, DEFAULTS.guidance_scale, Kernel.POSTERIOR)
    silent = DensityRequest(components=["a"], image="").params(Defaults(25, 4.0, kernel=Kernel.DETERMINISTIC))
    assert (silent.steps, silent.guidance_scale, silent.kernel) == (25, 1.0, Kernel.CALIBRATED)
