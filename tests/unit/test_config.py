from pathlib import Path

import pytest

from ckptd_daemon import config
from ckptd_proto.errors import InvalidArgument


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CKPTD_SOCKET", "CKPTD_STATE_DIR", "RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_flags_beat_the_environment_which_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ckptd.toml"
    file.write_text("streams = 2\nretries = 2\ndrain_s = 2.0\n")
    monkeypatch.setenv("CKPTD_STREAMS", "3")
    monkeypatch.setenv("CKPTD_RETRIES", "3")
    settings = config.load({"streams": 4}, file=file)
    assert (settings.streams, settings.retries, settings.drain_s) == (4, 3, 2.0)


def test_systemd_says_where_socket_and_state_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/ckptd")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/ckptd")
    settings = config.load({}, file=None)
    assert settings.socket == Path("/run/ckptd/ckptd.sock")
    assert settings.state_dir == Path("/var/lib/ckptd")


@pytest.mark.parametrize(
    ("is_pod", "has_kubelet", "percent"),
    [(False, False, 5), (True, False, 16), (False, True, 16)],
    ids=["elsewhere", "in a pod", "beside a kubelet"],
)
def test_where_a_kubelet_evicts_below_15_percent_more_than_that_is_left_free(
    is_pod: bool, has_kubelet: bool, percent: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CKPTD_FREE_FLOOR_PERCENT", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if is_pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(Path, "exists", lambda path: has_kubelet and "kubelet" in str(path))
    assert config.load({}, file=None).free_floor_percent == percent
    assert config.load({"free_floor_percent": 0}, file=None).free_floor_percent == 0


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = config.load({"socket": Path("a.sock"), "state_dir": Path("state")}, file=None)
    assert settings.socket == tmp_path / "a.sock"
    assert settings.state_dir == tmp_path / "state"


def test_the_environment_names_several_uids_and_paths_in_one_string(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CKPTD_ALLOW_UIDS", "1000,1001")
    monkeypatch.setenv("CKPTD_READ_ROOTS", "/data")
    monkeypatch.setenv("CKPTD_SAVE_ROOTS", "/a:/b")
    settings = config.load({}, file=None)
    assert settings.allow_uids == {1000, 1001}
    assert settings.read_roots == (Path("/data"),)
    assert settings.save_roots == (Path("/a"), Path("/b"))


def test_rates_by_host_are_a_table_in_the_file_and_one_string_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ckptd.toml"
    file.write_text('[source_max_bytes_per_s]\n"models.example" = 5\n"mirror.example:8443" = 7\n')
    rates = {"models.example": 5, "mirror.example:8443": 7}
    assert config.load({}, file=file).source_max_bytes_per_s == rates
    text = "models.example=5,mirror.example:8443=7"
    monkeypatch.setenv("CKPTD_SOURCE_MAX_BYTES_PER_S", text)
    assert config.load({}, file=None).source_max_bytes_per_s == rates
    monkeypatch.setenv("CKPTD_SOURCE_MAX_BYTES_PER_S", "models.example")
    with pytest.raises(InvalidArgument, match="source_max_bytes_per_s"):
        config.load({}, file=None)


def test_nonsense_in_the_environment_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTD_ALLOW_UIDS", "abc")
    with pytest.raises(InvalidArgument, match="allow_uids"):
        config.load({}, file=None)


def test_a_socket_path_over_107_bytes_is_refused_with_its_length(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"socket: .* 120 bytes long.* 107"):
        config.load({"socket": Path("/" + "s" * 119)}, file=None)


def test_a_low_watermark_above_the_high_one_is_refused_with_both_and_what_to_do() -> None:
    told = r"quota_low_percent: .*75 is above quota_high_percent, 60; give the same or less"
    with pytest.raises(InvalidArgument, match=told):
        config.load({"quota_high_percent": 60}, file=None)  # below the default of the other
    even = config.load({"quota_high_percent": 60, "quota_low_percent": 60}, file=None)
    assert (even.quota_low_percent, even.quota_high_percent) == (60, 60)


def test_a_high_watermark_that_is_wrong_itself_is_all_that_is_told() -> None:
    with pytest.raises(InvalidArgument, match=r"wrong: quota_high_percent: [^;]*$"):
        config.load({"quota_high_percent": 101}, file=None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("streams = 'many'", "streams"),
        ("streams = 0", "streams"),
        ("no_such_setting = 1", "no_such_setting"),
        ("this is not TOML", "cannot read the configuration"),
    ],
)
def test_a_wrong_file_is_refused_naming_what_is_wrong(
    tmp_path: Path, text: str, complaint: str
) -> None:
    file = tmp_path / "ckptd.toml"
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=complaint):
        config.load({}, file=file)


def test_a_file_that_does_not_exist_is_refused_rather_than_ignored(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"nowhere\.toml"):
        config.load({}, file=tmp_path / "nowhere.toml")
