"""`python -m mtl_jax.demo_page` as it is typed: it says where the page is, and ends with Ctrl-C."""

import http.client
import json
import re
import signal
import subprocess
import sys
from contextlib import closing

from drawings import drawing, encoded
from tiny_runs import tiny_run  # noqa: F401, a fixture

from mtl_jax import FewShotClassifier
from mtl_jax.demo_page import __main__ as program
from mtl_jax.demo_page.album import Album
from mtl_jax.demo_page.server import Server


def test_it_prints_the_address_serves_the_folder_and_ends_in_one_line(tmp_path, capsys):
    for name in ("flat", "steep"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        drawing(name, 0).save(tmp_path / "mine" / name / "0.png")
    (tmp_path / "mine" / "flat" / "notes.txt").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    words = ["-m", "mtl_jax.demo_page", "--support=mine", "--backbone=fc100-conv4", "--port=0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *words], **pipes, text=True, cwd=tmp_path) as child:
        try:
            said = child.stdout.readline()
            port = re.fullmatch(
                r"2 classes, 2 photographs; open http://127\.0\.0\.1:(\d+)/ in your browser, .*\n", said
            )[1]
            with closing(http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)) as connection:
                connection.request("GET", "/state")
                state = json.loads(connection.getresponse().read())
                assert [each["name"] for each in state["classes"]] == ["flat", "steep"]
                assert state["network"] == "fc100-conv4" and len(state["left_out"]) == 1
                assert program.main(["", f"--port={port}"]) == 2
                taken = f"error: --port={port}: another program listens on it; give another one, or --port=0 for any"
                assert capsys.readouterr().err == f"{taken} that is free\n"
                child.send_signal(signal.SIGINT)  # while the connection is open
                _, err = child.communicate(timeout=20)
        finally:
            child.kill()
    assert child.returncode == -signal.SIGINT
    left_out = "left out: mine/flat/notes.txt: not an image but data that starts with b'text'"
    assert err == f"{left_out}\n\ninterrupted by SIGINT\n"
    assert sorted(tmp_path.rglob("*")) == before


def png(name, number):
    return encoded(drawing(name, number))


def test_without_a_folder_the_page_is_empty_and_a_run_gives_the_network(tiny_run, monkeypatch, capsys):  # noqa: F811
    served = []
    monkeypatch.setattr(Server, "serve_forever", lambda server: served.append(server.album.state()))
    assert program.main(["", f"--workdir={tiny_run}", "--port=0"]) == 0
    assert capsys.readouterr().out.startswith("0 classes, 0 photographs; open http://127.0.0.1:")
    assert served[0]["network"] == str(tiny_run) and not served[0]["classes"] and not served[0]["unsorted"]


def test_a_network_that_takes_grey_images_takes_photographs(tiny_run):  # noqa: F811
    album = Album(FewShotClassifier.from_workdir(tiny_run), "glyphs")
    for name in ("flat", "steep"):
        place = album.add_class(name)
        for number in range(2):
            album.add(png(name, number), f"{number}.png", place)
    album.add(png("flat", 9), "q.png", 0)
    (photo,) = album.state()["unsorted"]
    assert photo["answer"]["class"] in ("flat", "steep") and len(photo["answer"]["nearest"]) == 3
