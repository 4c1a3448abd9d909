import pytest
from starlette.exceptions import HTTPException

from service.api.accept import preferred
from service.pictures import ImageFormat


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/*;q=0.8", "application/json"),
        ("image/png", "png"),
        ("image/webp;q=0.9, image/png;q=0.5", "webp"),
        ("image/png;q=0.4, application/json", "application/json"),
        ("text/html, image/jpeg", "jpeg"),
        ("image/*", "webp"),
        ("image/png;q=0, */*;q=0.1", "application/json"),
        ("IMAGE/PNG", "png"),
        ("application/json;q=0, */*", "webp"),
        ("text/event-stream", "text/event-stream"),
        ("application/json;q=0.9, text/event-stream", "text/event-stream"),
    ],
)
def test_the_preferred_answer_wins(accept, wanted):
    assert preferred(accept, ImageFormat.WEBP) == wanted


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "image/png;q=0", "nonsense", "image/png;q=x"])
def test_what_cannot_be_sent_is_406(accept):
    with pytest.raises(HTTPException) as refused:
        preferred(accept, ImageFormat.PNG)
    assert refused.value.status_code == 406
    assert "application/json" in refused.value.detail
