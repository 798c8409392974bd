"""Small objects in a bucket: one of several writers wins, lost answers are understood, faults are told in one line."""

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from stillroom.errors import InputError, StillroomError, StoreError, UnreachableError
from stillroom.format import prepare
from stillroom.remote import RETRIES, fault_of
from stillroom.stores import Store
from storage.leases import lease


def one_line(error: pytest.ExceptionInfo[StillroomError]) -> str:
    text = str(error.value)
    assert "\n" not in text and "Debug" not in text
    assert os.environ["AWS_ACCESS_KEY_ID"] not in text and os.environ["AWS_SECRET_ACCESS_KEY"] not in text
    return text


def test_what_was_put_is_read_listed_and_deleted(s3):
    store = Store(s3)
    assert (store.exists(), store.read("a/one.json"), store.list("")) == (False, None, [])
    store.put("a/one.json", b"1")
    store.put("a/one.json", b"2")
    store.put("a/Ä b+c%41/two", b"x" * (6 << 20))  # in parts: a client uploads what is large in several requests
    store.put("ab/three", b"")
    assert store.sizes("a/") == {"a/one.json": 1, "a/Ä b+c%41/two": 6 << 20}
    assert (store.read("a/one.json"), store.read("ab/three")) == (b"2", b"")
    assert b"".join(store.stream("a/Ä b+c%41/two", 1 << 20)) == b"x" * (6 << 20)
    store.delete("a/")
    assert (store.exists(), store.list("")) == (True, ["ab/three"])


def test_one_of_eight_writers_wins(s3):
    starting = threading.Barrier(8)

    def create(writer: int) -> bool:
        store = Store(s3)
        starting.wait()
        return store.create("records/x.json", f"writer {writer}".encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert won.count(True) == 1
    assert Store(s3).read("records/x.json") == f"writer {won.index(True)}".encode()


@pytest.mark.parametrize("kind", ["cut after", "500 after"])
def test_a_writer_whose_answer_was_lost_has_won(s3, proxy, plan, kind):
    proxy.follow(plan().aim("PUT", "x.json", kind, times=2))
    assert Store(s3).create("x.json", b"ours")
    assert proxy.suffered[kind] == 2
    assert not Store(s3).create("x.json", b"theirs")
    assert Store(s3).read("x.json") == b"ours"


def test_a_writer_that_hears_nothing_at_all_looks_before_it_tries_again(s3, proxy, plan):
    proxy.follow(plan().aim("PUT", "x.json", "cut after", times=9))  # the client's own nine tries
    assert Store(s3).create("x.json", b"ours")


@pytest.mark.parametrize("kind", ["cut before", "503 before", "cut in answer"])
def test_a_passing_fault_is_waited_for(s3, proxy, plan, kind):
    store = Store(s3)
    for method, path in (("PUT", "/a"), ("GET", "/a"), ("GET", "list-type"), ("POST", "delete")):
        proxy.plan.aim(method, path, kind, times=2)
    store.put("a", b"x" * 1000)
    assert (store.read("a"), store.list("")) == (b"x" * 1000, ["a"])
    store.delete("")
    assert store.list("") == []
    assert proxy.suffered[kind] >= 6


def test_an_object_that_goes_away_while_it_is_read_again_is_missing(s3, proxy, plan, monkeypatch):
    store, decide = Store(s3), proxy.fault
    store.put("a", b"x" * 1000)
    proxy.follow(plan().aim("GET", "/a", "cut in answer"))

    def gone_before_the_second(method: str, path: str) -> str:
        if method == "GET" and proxy.requests["GET"] == 1:
            Store(s3).remove("a")
        return decide(method, path)

    monkeypatch.setattr(proxy, "fault", gone_before_the_second)
    assert store.read("a") is None
    assert proxy.requests["GET"] == 2


def test_the_seeded_plan_disturbs_the_same_requests_again(proxy, plan):
    def drawn() -> list[str]:
        proxy.follow(plan(seed=5, rate=0.5))
        return [proxy.fault("GET", f"/{path}") for path in range(20) for _ in range(3)]

    first = drawn()
    assert first == drawn() and 15 < len([kind for kind in first if kind]) < 45


def test_a_lease_whose_answer_was_lost_is_held(s3, proxy, plan):
    proxy.follow(plan().aim("PUT", "leases/", "cut after", times=2).aim("PUT", "leases/", "500 after", times=2))
    store = Store(s3)
    with lease(store, "a", "this test") as held:
        assert held is not None and held.is_held()
    assert store.list("leases/") == store.list("beats/") == []
    assert proxy.suffered.total() == 4


def test_one_of_several_builders_holds_a_lease_in_a_bad_network(s3, proxy, plan):
    # The names of beats are new each time, and with them what is drawn to suffer: four faults come for certain.
    proxy.follow(plan(seed=2, rate=0.2).aim("PUT", "leases/", "cut after", times=2).aim("PUT", "leases/", "503 before", times=2))
    inside, most = [], []

    def work(number: int) -> None:
        with lease(Store(s3), "a", f"builder {number}"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(number)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert most == [1, 1, 1] and proxy.suffered.total() > 3


# What can't be mended by trying again


def test_a_dead_endpoint_is_one_line_and_takes_seconds(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UnreachableError) as error:
        Store(s3).read_json("records/x.json")
    assert one_line(error) == f"{s3}: http://127.0.0.1:9 can't be reached; check AWS_ENDPOINT and the network"
    assert time.monotonic() - started < 30


def test_a_server_that_only_fails_is_one_line(s3, proxy, plan, monkeypatch):
    monkeypatch.setitem(RETRIES, "max_retries", 2)
    proxy.follow(plan(rate=1, kinds=("503 before",), in_a_row=None))
    for request in (lambda: Store(s3).put("a", b""), lambda: Store(s3).create("a", b""), lambda: Store(s3).list("a/")):
        with pytest.raises(UnreachableError, match=r"answers with an error \(503 Service Unavailable\); try again later") as error:
            request()
        one_line(error)


def test_wrong_credentials_are_named_and_not_shown(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    for request in (lambda: Store(s3).read("a"), lambda: Store(s3).list(""), lambda: Store(s3).create("a", b"")):
        with pytest.raises(UnreachableError, match=r"refuses \(SignatureDoesNotMatch\); check AWS_ACCESS_KEY_ID") as error:
            request()
        one_line(error)


def test_a_missing_bucket_is_named(s3):
    store = Store("s3://no-such-bucket/store")
    for request in (lambda: store.read("a"), lambda: store.exists(), lambda: store.put("a", b""), lambda: store.create("a", b"")):
        with pytest.raises(UnreachableError, match="there is no bucket 'no-such-bucket' at http://127.0.0.1") as error:
            request()
        one_line(error)


def test_plain_http_has_to_be_allowed(s3, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(UnreachableError, match="isn't https; set AWS_ALLOW_HTTP=true"):
        Store(s3).exists()


def test_a_server_that_lets_a_second_writer_win_is_refused_before_anything_is_written(s3, proxy, plan):
    proxy.follow(plan().aim("PUT", "beats/probe", "never refused", times=2))
    with pytest.raises(StoreError, match="replaces an object although it was told not to"):
        prepare(Store(s3))
    assert Store(s3).list("") == []
    proxy.follow(plan())
    prepare(Store(s3))
    assert Store(s3).list("") == ["store.json"]


def test_a_uri_with_a_secret_or_of_another_kind_is_refused():
    with pytest.raises(InputError) as error:
        Store("s3://key:secret@bucket/prefix")
    assert "secret@" not in str(error.value) and "AWS_SECRET_ACCESS_KEY" in str(error.value)
    with pytest.raises(InputError, match="is no store; write a folder, or s3://BUCKET/PREFIX"):
        Store("ftp://host/store")


def test_what_a_server_quotes_is_not_passed_on(s3):
    quoting = "Generic S3 error: status code: 403 Forbidden: <Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>AKIAQUOTED</AWSAccessKeyId></Error>"
    for error in (OSError(quoting), ValueError(quoting)):
        assert str(fault_of(error, s3)).endswith("refuses (InvalidAccessKeyId); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do")
    assert fault_of(ValueError("Dataset at path p/t.lance was not found"), s3) is None
    assert fault_of(OSError(quoting), "/a/folder") is None
    nobody = fault_of(OSError("LanceError(IO): Generic N/A error: LanceError(IO): Failed to get AWS credentials: ProviderError"), s3)
    assert str(nobody) == f"{s3}: no credentials for it were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def test_a_server_that_takes_and_never_answers_is_given_up(s3, monkeypatch):
    monkeypatch.setitem(RETRIES, "max_retries", 2)
    monkeypatch.setenv("AWS_TIMEOUT", "1s")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as mute:
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{mute.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="can't be reached"):
            Store(s3).read("a")
        assert time.monotonic() - started < 30
