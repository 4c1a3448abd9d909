import pytest
from starlette.exceptions import HTTPException

from service.api.accept import wants_picture
from service.schemas import ImageFormat


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, None),
        ("*/*", None),
        ("application/json", None),
        ("application/*;q=0.8", None),
        ("image/png", "png"),
        ("image/webp;q=0.9, image/png;q=0.5", "webp"),
        ("image/png;q=0.4, application/json", None),
        ("text/html, image/jpeg", "jpeg"),
        ("image/*", "webp"),
        ("image/png;q=0, */*;q=0.1", None),
        ("IMAGE/PNG", "png"),
    ],
)
def test_the_preferred_answer_wins(accept, wanted):
    assert wants_picture(accept, ImageFormat.WEBP) == wanted


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "image/png;q=0", "nonsense", "image/png;q=x"])
def test_what_cannot_be_sent_is_406(accept):
    with pytest.raises(HTTPException) as refused:
        wants_picture(accept, ImageFormat.PNG)
    assert refused.value.status_code == 406
    assert "application/json" in refused.value.detail
