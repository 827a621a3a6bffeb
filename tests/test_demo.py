"""`epg demo`: the page's server as a browser meets it."""

import http.client

import pytest
from PIL import Image

from epg.cli import main
from epg.demo.drawing import Drawer
from epg.errors import UserError
from tests.generators import save_run, tiny_generator
from tests.helpers import tiny_config

CALLS = {
    "/images": (0, 4, 3, 3, 2.0, 0.0, 80.0),
    "/one_and_many": (1, 2, 3, 3),
    "/between": (0, 2, 3, 2, 3),
    "/trajectory": (2, 3, 3),
}
WRONG = [
    ("/images", (7, 4, 3, 3, 2.0, 0.0, 80.0)),
    ("/images", (0, 10**6, 3, 3, 2.0, 0.0, 80.0)),
    ("/images", (0, 4, -1, 3, 2.0, 0.0, 80.0)),
    ("/images", (0, 4, 3, 10**9, 2.0, 0.0, 80.0)),
    ("/images", (0, 4, 3, 3, 1e30, 0.0, 80.0)),
    ("/images", (0, 4, 3, 3, 2.0, 5.0, 1.0)),
    ("/images", ("../../etc/hostname", 4, 3, 3, 2.0, 0.0, 80.0)),
    ("/trajectory", (0, "3; ls", 3)),
    ("/between", (0, 1, 3, 10**9, 3)),
]
PATHS = [
    "/etc/hostname",
    "../../../../etc/hostname",
    "%2e%2e/%2e%2e/etc/hostname",
    "pyproject.toml",
    "C:/windows/win.ini",
]


@pytest.mark.parametrize("stage", ["diffusion", "consistency"])
def test_every_drawing(stage):
    drawer = Drawer(tiny_generator(stage))
    assert drawer.images(None, 6, 1, 3, 2.0, 0.0, 80.0).size == (160, 108)
    one, many = drawer.one_and_many(1, 4, 1, 3)
    assert one.size == many.size == (108, 108)
    assert one.tobytes() != many.tobytes()
    assert drawer.between(0, 2, 1, 3, 3).width == 5 * 52 + 4
    assert drawer.trajectory(0, 1, 3).height == 2 * 52 + 4


def test_without_classes():
    drawer = Drawer(tiny_generator(model={"num_classes": 0}))
    assert drawer.images(None, 4, 1, 3, 2.0, 0.0, 80.0).size == (108, 108)
    assert drawer.between(None, None, 1, 3, 3).width == 5 * 52 + 4


@pytest.mark.parametrize("values", [values for call, values in WRONG if call == "/images"])
def test_out_of_bounds(values):
    with pytest.raises(UserError, match=r"must be|interval"):
        Drawer(tiny_generator()).images(*values)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory):
    from epg.demo.page import launched, page

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        blocks = page(Drawer(tiny_generator()), "a tiny model")
        _, address, public = launched(blocks, "127.0.0.1", 7999, share=False)
        assert public is None
        assert address.startswith("http://127.0.0.1:")
        yield address
        blocks.close(verbose=False)


def client(address: str):
    from gradio_client import Client

    return Client(address, verbose=False, analytics_enabled=False)


def opened(answer: object) -> tuple[int, int]:
    with Image.open(str(answer)) as picture:
        assert picture.format == "PNG"
        return picture.size


@pytest.mark.parametrize("name", CALLS)
def test_a_request_is_answered(name, address):
    answer = client(address).predict(*CALLS[name], api_name=name)
    for picture in answer if isinstance(answer, tuple | list) else [answer]:
        assert opened(picture)[1] >= 56


def test_after_wrong_values_and_fifty_at_once_it_answers(address):
    asking = client(address)
    for name, values in WRONG:
        with pytest.raises(
            Exception,
            match=r"must be|interval|not in the list|Value|minimum|maximum|number|invalid|upstream Gradio app",
        ):
            asking.predict(*values, api_name=name)
    jobs = [asking.submit(*CALLS["/images"], api_name="/images") for _ in range(50)]
    failed = [str(error) for job in jobs if (error := job.exception(timeout=120))]
    assert len(failed) < 50
    assert all("Queue is full" in text or "peer closed" in text for text in failed), set(failed)
    assert opened(asking.predict(*CALLS["/images"], api_name="/images")) == (108, 108)


@pytest.mark.parametrize("path", PATHS)
def test_no_file_of_the_machine_is_served(path, address):
    host = address.removeprefix("http://").rstrip("/")
    for prefix in ("/gradio_api/file=", "/file=", "/static/", "/assets/"):
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request("GET", prefix + path)
        assert connection.getresponse().status in (403, 404, 400, 307), prefix + path


def test_without_gradio_it_says_how(tmp_path, monkeypatch, capsys):
    run = save_run(tmp_path / "run", tiny_config())
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    assert main(["demo", str(run)]) == 2
    assert "the page needs gradio. " in capsys.readouterr().err


def test_the_page_asks_nobody_else(address):
    """No address of another machine in what a browser loads first, beyond comments of gradio's own."""
    host = address.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.request("GET", "/")
    text = connection.getresponse().read().decode()
    assert "googleapis" not in text
    assert '"analytics_enabled":false' in text.replace(" ", "")
