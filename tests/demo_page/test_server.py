"""What the page's server answers, and all that it refuses, as any program could ask it."""

import contextlib
import http.client
import io
import json
import socket
import sys
import threading
from urllib.parse import urlencode

import numpy as np
import pytest
from drawings import ANGLES, drawing, encoded
from PIL import Image, features

from mtl_jax import FewShotClassifier
from mtl_jax.classify import folders
from mtl_jax.demo_page import album as albums
from mtl_jax.demo_page import server as servers
from mtl_jax.demo_page.album import Album
from mtl_jax.errors import ConfigError


def ask(page, method, path, fields=None, body=None, **headers):
    """Status and content of an answer; the request is as the page sends it, unless `headers` say otherwise."""
    host = f"127.0.0.1:{page.server_port}"
    own = {"Host": host, "Origin": f"http://{host}", **{key.replace("_", "-"): value for key, value in headers.items()}}
    connection = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=20)
    with contextlib.closing(connection):
        target = f"{path}?{urlencode(fields)}" if fields else path
        connection.putrequest(method, target, skip_host=True)
        sent = own if body is None else {"Content-Length": str(len(body)), **own}
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.headers["Cache-Control"] == "no-store" and "frame-ancestors" in str(answer.headers)
        assert not any(name.lower().startswith("access-control") for name in answer.headers)
        is_json = answer.headers["Content-Type"].startswith("application/json")
        return answer.status, json.loads(content) if is_json else content


def made(page, method, path, fields=None, body=None):
    """The content of an answer that must be one."""
    status, content = ask(page, method, path, fields, body)
    assert status == 200, content
    return content


def refused(page, *words, **headers):
    """The status of a refusal, and why; nothing on the page has changed."""
    before = made(page, "GET", "/state")
    status, content = ask(page, *words, **headers)
    assert status >= 400 and list(content) == ["error"]
    assert made(page, "GET", "/state") == before
    return status, content["error"]


def add(page, place, name, body):
    return made(page, "POST", "/photographs", {"class": place, "name": name}, body)["id"]


def filled(page, names=("flat", "steep"), each=2):
    """Makes classes of drawings and returns the number of each."""
    places = {name: made(page, "POST", "/classes", {"name": name})["id"] for name in names}
    for name, place in places.items():
        for number in range(each):
            add(page, place, f"{name}{number}.png", encoded(drawing(name, number)))
    return places


def test_answers_are_those_of_the_classifier_and_the_nearest_those_of_its_features(page, classifier):
    filled(page, ANGLES)
    for name in ANGLES:
        add(page, 0, f"{name}.png", encoded(drawing(name, 9)))
    state = made(page, "GET", "/state")
    examples = [drawing(name, number) for name in ANGLES for number in range(2)]
    labels = np.repeat(list(ANGLES), 2)
    own = FewShotClassifier.from_pretrained("fc100-conv4").fit(examples, labels)
    queries = [drawing(name, 9) for name in ANGLES]
    unit = [
        each / np.linalg.norm(each)
        for each in own.embed(np.stack([np.asarray(im.resize((32, 32), 2)) for im in [*examples, *queries]]))
    ]
    similarity = np.stack(unit[6:]) @ np.stack(unit[:6]).T
    assert [photo["name"] for photo in state["unsorted"]] == [f"{name}.png" for name in ANGLES]
    for photo, row, near in zip(state["unsorted"], own.predict_proba(queries), similarity, strict=True):
        said = dict(photo["answer"]["probabilities"])
        assert photo["answer"]["class"] == max(said, key=said.get) == own.classes_[row.argmax()]
        np.testing.assert_allclose([said[name] for name in own.classes_], row, atol=0.02)  # float16 features or batches
        assert list(said.values()) == sorted(said.values(), reverse=True)
        assert [each["class"] for each in photo["answer"]["nearest"]] == labels[np.argsort(-near)[:3]].tolist()
        assert not photo["answer"]["is_example"]


def test_classes_are_made_named_and_removed_and_photographs_moved(page):
    places = filled(page)
    query = add(page, 0, "q.png", encoded(drawing("flat", 9)))
    copy = add(page, 0, "copy.png", encoded(drawing("flat", 0)))
    unsorted = made(page, "GET", "/state")["unsorted"]
    assert [photo["answer"]["is_example"] for photo in unsorted] == [False, True]
    assert refused(page, "POST", f"/photographs/{copy}", {"class": places["steep"]}) == (
        422, "copy.png: the same photograph as flat0.png, which is in class flat already")  # fmt: skip
    made(page, "POST", f"/classes/{places['flat']}", {"name": " lying\n stripes "})
    made(page, "POST", f"/photographs/{query}", {"class": places["steep"]})
    made(page, "DELETE", f"/photographs/{copy}")
    state = made(page, "GET", "/state")
    assert {each["name"]: [photo["name"] for photo in each["photographs"]] for each in state["classes"]} == {
        "lying stripes": ["flat0.png", "flat1.png"], "steep": ["steep0.png", "steep1.png", "q.png"]}  # fmt: skip
    assert not state["unsorted"]
    made(page, "DELETE", f"/classes/{places['steep']}")
    assert [each["name"] for each in made(page, "GET", "/state")["classes"]] == ["lying stripes"]
    assert ask(page, "GET", f"/thumbnails/{query}")[0] == 404
    add(page, 0, "q.png", encoded(drawing("flat", 9)))
    state = made(page, "GET", "/state")
    assert state["unsorted"][0]["answer"] is None and not state["problem"]  # of one class there is no answer


def test_the_answers_follow_every_change(page):
    places = filled(page)
    add(page, 0, "q.png", encoded(drawing("flat", 9)))

    def answer():
        return made(page, "GET", "/state")["unsorted"][0]["answer"]

    first = answer()
    made(page, "POST", f"/classes/{places['flat']}", {"name": "lying"})
    assert first["class"] == "flat" and answer()["class"] == "lying"
    add(page, places["flat"], "more.png", encoded(drawing("flat", 8)))
    assert answer()["probabilities"] != first["probabilities"]
    made(page, "DELETE", f"/classes/{places['flat']}")
    assert answer() is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "JPEG2000", "HEIF"])
def test_photographs_of_every_kind_have_a_thumbnail_that_browsers_show(page, kind):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this build of Pillow has no AVIF")
    raw = encoded(drawing("flat", 0, side=80).crop((0, 0, 80, 64)), kind)
    number = add(page, 0, "no suffix", raw)
    thumbnail = ask(page, "GET", f"/thumbnails/{number}")[1]
    with Image.open(io.BytesIO(thumbnail)) as image:
        assert image.format == "JPEG" and image.size == (192, 192)


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("notes.png", b"no image", "notes.png: not an image but data that starts with b'no image'"),
        ("page.jpg", b"<!DOCTYPE html><html>", "page.jpg: not an image but an HTML page (a download that failed?)"),
        ("x.svg", b"<svg onload='alert(1)'>", "x.svg: not an image but an SVG drawing"),
        ("a.jpg", b"", "a.jpg: the file is empty (0 bytes)"),
        ("cut.png", encoded(drawing("flat", 0))[:900], "cut.png: damaged image (the file is cut)"),
        ("big.bmp", b"BM" + bytes(12) + (40).to_bytes(4, "little") + (30000).to_bytes(4, "little") * 2
         + b"\1\0\x18\0" + bytes(24), "big.bmp: 30000 x 30000 pixels, over max_pixels, 250 million"),
        ("../../etc/pass\0wd\u202e", b"%PDF", "pass wd: not an image but a PDF file"),
        (r"C:\photos\x.gif", b"\xff\x0a", "x.gif: not an image but a JPEG XL image, which is not supported"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)  # fmt: skip
def test_what_is_no_image_is_refused_by_its_content(page, name, raw, reason):
    status, error = refused(page, "POST", "/photographs", {"class": 0, "name": name}, raw)
    assert status == 422 and error.startswith(reason) and "--" not in error and "config" not in error


def test_sizes_are_bounded(page, monkeypatch):
    png = encoded(drawing("flat", 0))
    status, error = refused(page, "POST", "/photographs", None, None, Content_Length=str(servers.MAX_BYTES + 1))
    assert (status, error) == (413, "Files of more than 64 MB are refused.")
    for headers in ({"Content_Length": "-1"}, {"Content_Length": "x"}, {"Transfer_Encoding": "chunked"}):
        assert refused(page, "POST", "/photographs", None, None, **headers)[0] == 411
    assert refused(page, "POST", "/classes", {"name": "x"}, b"content")[0] == 413
    monkeypatch.setattr(albums, "MAX_PHOTOGRAPHS", 1)
    monkeypatch.setattr(albums, "MAX_CLASSES", 1)
    place = made(page, "POST", "/classes", {"name": "x" * 200})["id"]
    assert made(page, "GET", "/state")["classes"][0]["name"] == "x" * 100
    add(page, place, "x.png", png)
    for words, reason in (
        (("POST", "/classes", {"name": "y"}), "There are 1 classes, the most"),
        (("POST", "/photographs", {"class": place, "name": "y"}, encoded(drawing("flat", 1))), "There are 1 photogr"),
    ):
        status, error = refused(page, *words)
        assert status == 422 and error.startswith(reason)
    assert refused(page, "GET", "/" + 70000 * "x")[0] == 414
    assert refused(page, "GET", "/state", **{f"X{i}": "y" for i in range(120)})[0] == 431


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"}, {"Host": "evil.example:8642"}, {"Host": None}, {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example:1"}, {"Host": "192.168.0.1"}, {"Host": "127.0.0.1@evil.example"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/state"), ("POST", "/classes?name=x")])
def test_names_that_only_point_here_are_refused(page, method, path, headers):
    status, error = refused(page, method, path, None, None, **{"Origin": None, **headers})
    assert status == 421 and error == f"This page is at {page.address} alone."
    origin = {"Origin": f"http://{headers['Host']}"} if headers["Host"] else {}
    assert refused(page, method, path, None, None, **{**headers, **origin})[0] == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1"}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"},
    ],
    ids=str,
)  # fmt: skip
def test_what_another_site_sends_is_refused(page, headers):
    number = add(page, 0, "x.png", encoded(drawing("flat", 0)))
    for words in (
        ("GET", "/state"), ("GET", f"/thumbnails/{number}"), ("POST", "/classes", {"name": "x"}),
        ("POST", "/photographs", {"class": 0, "name": "x"}, encoded(drawing("flat", 1))),
        ("DELETE", f"/photographs/{number}"),
    ):  # fmt: skip
        assert refused(page, *words, **headers)[0] == 403
    assert refused(page, "DELETE", f"/photographs/{number}", Origin=None)[0] == 403
    assert refused(page, "OPTIONS", "/photographs", **headers)[0] == 501


def test_the_page_may_be_asked_by_both_names_of_this_machine_at_any_port(page):
    """A tunnel of `ssh -L 9000:127.0.0.1:8642` has another port on the side of the browser."""
    for host in ("localhost:9000", "127.0.0.1", "LOCALHOST:9000"):
        headers = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
        assert ask(page, "POST", "/classes", {"name": host}, **headers)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/..%2f..%2fetc/passwd", "//etc/passwd", "/etc/passwd", "/server.py", "/static/../app.js",
     "/app.js/1", "/thumbnails/../../app.js", "/thumbnails/7", "/thumbnails/-1", "/thumbnails/1e3", "/favicon.ico",
     "/state/1", "/app.js%00", "/[", "http://[/"],
)  # fmt: skip
def test_no_path_leads_out_of_the_page(page, path):
    assert refused(page, "GET", path)[0] in (400, 404)


def test_the_files_of_the_page_are_there(page):
    for path, start in (("/", b"<!DOCTYPE html>"), ("/app.js", b"//"), ("/style.css", b":root")):
        assert made(page, "GET", path).startswith(start)
    html = made(page, "GET", "/")
    assert b"http://" not in html and b"https://" not in html  # nothing from elsewhere


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("POST", "/classes", {"name": " \n"}), "A class needs a name."),
        (("POST", "/classes", {"name": "flat"}), "There is a class flat already."),
        (("POST", "/classes", {"name": "fl\0at"}), None),
        (("POST", "/classes/99", {"name": "x"}), "There is nothing of that name."),
        (("POST", "/photographs/99", {"class": 0}), "That photograph is gone: load the page again."),
        (("POST", "/photographs", {"class": 99, "name": "x"}, encoded(drawing("flat", 5))), "That class is gone"),
        (("POST", "/photographs", {"class": "x", "name": "x"}, b"x"), "A class is given by its number."),
        (("POST", "/photographs", {"class": 0, "name": "x"}, None), "x: the file is empty (0 bytes)"),
        (("PUT", "/state"), "Unsupported method ('PUT')"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(page, words, reason):
    filled(page, each=1)
    if reason is None:
        assert ask(page, *words)[0] == 200  # another name: the character is a space
    else:
        assert refused(page, *words)[1].startswith(reason)


def test_what_the_classifier_refuses_is_said_in_place_of_answers(page, monkeypatch):
    filled(page)
    add(page, 0, "q.png", encoded(drawing("flat", 9)))
    monkeypatch.setattr(page.album.classifier, "steps", 0)
    state = made(page, "GET", "/state")
    assert state["problem"] == "steps is 0, expected a positive whole number"
    assert state["unsorted"][0]["answer"] is None
    monkeypatch.setattr(page.album.classifier, "steps", 100)
    assert made(page, "GET", "/state")["unsorted"][0]["answer"]["class"] == "flat"


def test_a_fault_of_the_program_is_named_and_shown_in_its_terminal(page, monkeypatch, capsys):
    monkeypatch.setattr(page.album, "state", lambda: 1 / 0)
    status, content = ask(page, "GET", "/state")
    assert (status, content) == (500, {"error": "A fault of the program: its terminal shows where."})
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_browser_that_leaves_in_the_middle_of_a_file_changes_nothing(page, capsys):
    with socket.create_connection(("127.0.0.1", page.server_port)) as connection:
        host = f"127.0.0.1:{page.server_port}"
        head = f"POST /photographs?class=0 HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nContent-Length: 999\r\n"
        connection.sendall(f"{head}\r\n".encode() + b"\x89PNG")
    assert not made(page, "GET", "/state")["unsorted"]
    assert not capsys.readouterr().err


def test_many_at_once_are_all_there(page):
    place = made(page, "POST", "/classes", {"name": "flat"})["id"]
    files = [encoded(drawing("flat", number)) for number in range(12)]
    threads = [threading.Thread(target=add, args=(page, place, f"{i}", file)) for i, file in enumerate(files)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (only,) = made(page, "GET", "/state")["classes"]
    assert sorted(photo["name"] for photo in only["photographs"]) == sorted(map(str, range(12)))


_seen, _is_watched = [], threading.Event()


def _audit(event, words):
    writes = event == "open" and ((words[1] and set(words[1]) & set("wax+")) or (words[2] or 0) & 3)
    network = event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
    if _is_watched.is_set() and (writes or network) and threading.current_thread() is not threading.main_thread():
        _seen.append((event, words))


def test_nothing_is_written_and_no_network_is_asked(page):
    sys.addaudithook(_audit)
    _is_watched.set()
    try:
        test_the_answers_follow_every_change(page)
        made(page, "GET", "/")
    finally:
        _is_watched.clear()
    assert not _seen


def test_a_support_folder_fills_the_page(classifier, tmp_path):
    for name in ANGLES:
        (tmp_path / name).mkdir()
        for number in range(3):
            drawing(name, number).save(tmp_path / name / f"{number}.png")
    (tmp_path / "flat" / "cut.png").write_bytes(encoded(drawing("flat", 7))[:500])
    (tmp_path / "flat" / "notes.txt").write_text("flat stripes")
    (tmp_path / "steep" / "wrong.png").write_bytes((tmp_path / "flat" / "0.png").read_bytes())
    album = Album(classifier, "a network")
    album.fill(folders.find_support(tmp_path))
    state = album.state()
    assert {each["name"]: len(each["photographs"]) for each in state["classes"]} == dict.fromkeys(ANGLES, 3)
    assert state["left_out"] == [
        f"{tmp_path}/flat/notes.txt: not an image but data that starts with b'flat str'",
        f"{tmp_path}/flat/cut.png: damaged image (the file is cut)",
        "wrong.png: the same photograph as 0.png, which is in class flat already",
    ]


def test_a_support_folder_of_too_many_is_refused(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(albums, "MAX_PHOTOGRAPHS", 2)
    support = folders.Support([tmp_path / f"{i}" for i in range(3)], ["a", "b", "b"], [])
    with pytest.raises(ConfigError, match="--support: 3 photographs of 2 classes; a page holds 2 of 100: give fewer"):
        Album(classifier, "").fill(support)


def test_probabilities_that_nothing_calibrates_are_said_to_be_that(page, monkeypatch):
    filled(page, each=1)
    add(page, 0, "q.png", encoded(drawing("flat", 9)))
    assert made(page, "GET", "/state")["is_calibrated"]
    monkeypatch.setattr(page.album.classifier, "is_calibrated_", False)  # as of a network with no table of its own
    assert not made(page, "GET", "/state")["is_calibrated"]
