"""Settings: sources and their order, units, and errors that name the field, its value and the remedy."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvcommons_core.errors import ConfigurationError, UnknownSettingError
from kvcommons_core.settings import (
    IndexSettings,
    NodeSettings,
    Section,
    describe,
    flags_of,
    load_settings,
)
from kvcommons_core.settings_tiers import DiskTier
from kvcommons_core.settings_values import format_bytes, parse_bytes
from pydantic import Field


class Instance(Section):
    """An item of a list, as the router has them."""

    name: str
    url: str
    key: str = Field(default="", max_length=8)


class ProxySection(Section):
    """A section with a list in it."""

    instances: tuple[Instance, ...] = ()


class ProxySettings(Section):
    """A process of its own."""

    router: ProxySection = ProxySection()
    index: IndexSettings = IndexSettings()


def write(folder: Path, text: str, name: str = "kvcommons.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_later_sources_win(tmp_path: Path) -> None:
    """Defaults, then the file, then the environment, then flags."""
    file = write(tmp_path, '[node]\nzone = "file"\nnode_id = "file"\naddress = "file"\n')
    environ = {"KVCOMMONS_NODE__ZONE": "environment", "KVCOMMONS_NODE__NODE_ID": "environment", "HOME": "/"}
    loaded = load_settings(NodeSettings, file=file, environ=environ, flags={"node.zone": "flag"}).node
    assert (loaded.zone, loaded.node_id, loaded.address) == ("flag", "environment", "file")
    assert loaded.control_port == 9470


def test_a_file_may_serve_several_processes(tmp_path: Path) -> None:
    """A section of another process is left alone, even where it is wrong for us; an unknown one is refused."""
    file = write(tmp_path, '[router]\nport = "not ours to judge"\n[index]\nprefix = "p:"\n')
    assert load_settings(NodeSettings, file=file, environ={}).index.prefix == "p:"
    with pytest.raises(UnknownSettingError, match="did you mean router"):
        load_settings(NodeSettings, file=write(tmp_path, "[ruoter]\nport = 1\n"), environ={})


def test_json_files_are_read_too(tmp_path: Path) -> None:
    """The operator writes JSON."""
    document = {"router": {"instances": [{"name": "e1", "url": "http://e1"}]}}
    loaded = load_settings(ProxySettings, file=write(tmp_path, json.dumps(document), "c.json"), environ={})
    assert loaded.router.instances[0].name == "e1"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"KVCOMMONS_NODE__ARENA_BITES": "1"}, "did you mean node.arena_bytes"),
        ({"KVCOMMONS_NODES__ARENA_BYTES": "1"}, "KVCOMMONS_NODES__ARENA_BYTES: .*did you mean node"),
        ({"KVCOMMONS_INDEX__URI": "x"}, "did you mean index.url"),
        ({"KVCOMMONS_NODE__ZZZZZ": "x"}, "known: .*node.arena_bytes"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(environ: dict[str, str], message: str) -> None:
    """A typo never passes silently."""
    with pytest.raises(UnknownSettingError, match=message):
        load_settings(NodeSettings, environ=environ)


def test_an_unknown_name_deep_in_a_list_is_found(tmp_path: Path) -> None:
    """The place of the typo is named with its index."""
    file = write(tmp_path, '[[router.instances]]\nname = "a"\nurll = "http://x"\n')
    with pytest.raises(UnknownSettingError, match=r"router.instances.0.urll: .*did you mean router.instances.0.url\?"):
        load_settings(ProxySettings, file=file, environ={})


def test_a_tier_is_a_table_of_its_own() -> None:
    """A list of tables as JSON, or one alone; sizes have units, and what is wrong is named with its place and the remedy."""

    def tiers(text: str) -> NodeSettings:
        return load_settings(NodeSettings, environ={"KVCOMMONS_NODE__TIERS": text})

    assert load_settings(NodeSettings, environ={}).node.tiers == ()
    (disk,) = tiers('[{"type": "disk", "paths": ["/a", "/b"], "capacity_bytes": "1TiB"}]').node.tiers
    assert isinstance(disk, DiskTier)
    assert (disk.type, disk.paths, disk.capacity_bytes, disk.engine) == ("disk", ("/a", "/b"), 1 << 40, "auto")
    assert tiers('{"type": "disk", "paths": "/a,/b", "capacity_bytes": "1TiB"}').node.tiers == (disk,)
    with pytest.raises(UnknownSettingError, match=r"node.tiers.0.path: .*did you mean node.tiers.0.paths\?"):
        tiers('[{"type": "disk", "path": "/a", "capacity_bytes": "1TiB"}]')
    for text, message in (
        ('[{"type": "tape", "paths": "/a", "capacity_bytes": "1TiB"}]', "node.tiers.0.type: 'tape': give one of disk"),
        (
            '[{"type": "disk", "paths": "/a", "capacity_bytes": "1XiB"}]',
            "node.tiers.0.capacity_bytes: '1XiB': give a number",
        ),
        ('[{"type": "disk", "paths": "/a"}]', "node.tiers.0.capacity_bytes: .*: it is required"),
        (
            '[{"type": "disk", "paths": "/a", "capacity_bytes": "200MiB"}]',
            "200MiB. must be at least 4 segments .512MiB.: give more, or smaller segment_bytes",
        ),
        ('[{"type": "disk", "paths": "/a,/a", "capacity_bytes": "1GiB"}]', "another folder"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            tiers(text)


def test_a_store_that_is_shared_is_a_tier_behind_the_disk() -> None:
    """Redis and S3 have tables of their own with the nearest name for a wrong one, no password in an address, and a place behind the disk."""

    def tiers(*tables: dict[str, object]) -> NodeSettings:
        return load_settings(NodeSettings, environ={"KVCOMMONS_NODE__TIERS": json.dumps(tables)})

    disk: dict[str, object] = {"type": "disk", "paths": "/a", "capacity_bytes": "1TiB"}
    redis: dict[str, object] = {"type": "redis", "url": "redis://store:6379/0", "capacity_bytes": "64GiB"}
    s3: dict[str, object] = {"type": "s3", "bucket": "kvc", "endpoint": "http://store:9000", "capacity_bytes": "1TiB"}
    found = tiers(disk, redis, s3).node.tiers
    assert [tier.type for tier in found] == ["disk", "redis", "s3"]
    with pytest.raises(UnknownSettingError, match=r"node.tiers.1.time_out: .*did you mean node.tiers.1.time_out_ms\?"):
        tiers(disk, redis | {"time_out": 5})
    with pytest.raises(UnknownSettingError, match=r"node.tiers.0.buckets: .*did you mean node.tiers.0.bucket\?"):
        tiers(s3 | {"buckets": "x"})
    for tables, message in (
        ((redis | {"type": "memcached"},), "node.tiers.0.type: 'memcached': give one of disk, redis, s3"),
        (({"capacity_bytes": "1GiB"},), "node.tiers.0: .*it needs a type"),
        ((redis | {"capacity_bytes": "4XB"},), "node.tiers.0.capacity_bytes: '4XB': give a number"),
        ((redis | {"url": "http://x"},), "must begin with one of redis://"),
        ((redis | {"url": "redis://u:hush@x:1/0"},), "no credentials"),
        ((redis | {"url_file": "/x"},), "one of url and url_file"),
        ((s3 | {"access_key_id_file": "/x"},), "both of access_key_id_file"),
        ((redis, disk), "put the disk first"),
        ((redis, redis), "one tier of each type"),
    ):
        with pytest.raises(ConfigurationError, match=message) as refused:
            tiers(*tables)
        assert "hush" not in str(refused.value)


def test_variables_that_are_no_settings_are_left_alone() -> None:
    """Only names with a section (two underscores) are settings."""
    load_settings(NodeSettings, environ={"KVCOMMONS_CACHE_DIR": "/x", "KVCOMMONS_NO_SKIP": "1", "OTHER__X": "1"})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"node.arena_bytes": "lots"}, "node.arena_bytes: 'lots'"),
        ({"node.arena_bytes": "8XiB"}, "node.arena_bytes: '8XiB': give a number of bytes, .* KiB, MiB, GiB, TiB"),
        ({"node.arena_bytes": "1KiB"}, "node.arena_bytes: .*: give at least 1MiB"),
        ({"node.control_port": "70000"}, "node.control_port: '70000': give at most 65535"),
        ({"node.control_port": "many"}, "node.control_port: 'many': give a whole number"),
        ({"node.eviction": "fifo"}, "node.eviction: 'fifo'"),
        ({"node.populate": "maybe"}, "node.populate: 'maybe': give true or false"),
        ({"node.log_level": "loud"}, "node.log_level: 'loud': give one of debug, info, warning, error"),
        ({"node.allowed_uids": "me,you"}, "node.allowed_uids.0: 'me': give a whole number"),
        ({"index.holder_ttl_seconds": "30000"}, "must not exceed holder_age_seconds_max"),
        ({"index.prefix": ""}, "index.prefix"),
    ],
)
def test_a_wrong_value_names_the_field_and_the_bound(flags: dict[str, str], message: str) -> None:
    """The error says which field, which value, and what would do, with no word of the library that checks it."""
    with pytest.raises(ConfigurationError, match=message):
        load_settings(NodeSettings, environ={}, flags=flags)


def test_a_secret_in_a_wrong_setting_is_not_shown(tmp_path: Path) -> None:
    """An error message may be logged, so it holds no key."""
    file = write(tmp_path, '[[router.instances]]\nname = "a"\nurl = "u"\nkey = "hunter2-hunter2"\n')
    with pytest.raises(ConfigurationError) as caught:
        load_settings(ProxySettings, file=file, environ={})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 << 30),
        ("512Mi", 512 << 20),
        ("2GB", 2 * 10**9),
        ("1.5KiB", 1536),
        ("77", 77),
        ("1 TiB", 1 << 40),
        ("3k", 3000),
    ],
)
def test_sizes_take_suffixes(text: str, size: int) -> None:
    """Powers of two with an i, of ten without."""
    assert parse_bytes(text) == size


@given(text=st.text(max_size=12))
def test_any_text_is_a_size_or_left_to_be_refused(text: str) -> None:
    """Nothing makes the parser itself fail."""
    assert isinstance(parse_bytes(text), int | str)


def test_lists_come_with_commas_or_as_json() -> None:
    """Both spellings of a list are read from the environment."""
    for text in ("1,2", "[1, 2]", " 1 , 2 ,"):
        assert load_settings(NodeSettings, environ={"KVCOMMONS_NODE__ALLOWED_UIDS": text}).node.allowed_uids == (1, 2)


def test_flags_belong_to_the_own_section_unless_they_say_another() -> None:
    """--arena-bytes is the node's; --index.url names its section; a boolean needs no value; the rest is handed back."""
    flags, rest = flags_of(
        NodeSettings, ["--arena-bytes", "3GiB", "--populate", "--index.url=redis://x", "file"], "node"
    )
    assert flags == {"node.arena_bytes": "3GiB", "node.populate": "true", "index.url": "redis://x"}
    assert rest == ["file"]
    assert load_settings(NodeSettings, environ={}, flags=flags).node.arena_bytes == 3 << 30


def test_an_unknown_flag_names_the_nearest_one_as_a_flag() -> None:
    """The remedy can be typed as it stands."""
    with pytest.raises(UnknownSettingError, match=r"did you mean --arena-bytes\?"):
        flags_of(NodeSettings, ["--arena-byte", "1"], "node")
    with pytest.raises(UnknownSettingError, match=r"did you mean --index.url\?"):
        flags_of(NodeSettings, ["--index.uri", "1"], "node")
    with pytest.raises(ConfigurationError, match="--arena-bytes: '': give it a value"):
        flags_of(NodeSettings, ["--arena-bytes"], "node")


def test_every_flag_says_in_the_help_what_it_is_for_and_its_default_as_one_would_type_it() -> None:
    """Every flag has a sentence; sizes have units, choices are listed, and an empty default is no pair of quotes."""
    lines = {line.split()[0]: line.split(maxsplit=1)[1:] for line in describe(NodeSettings, "node").splitlines()}
    assert not [flag for flag, text in lines.items() if not text or text[0].startswith("[")]
    text = describe(NodeSettings, "node")
    for shown in ("[4GiB]", "[64MiB]", "[true]", "One of debug, info, warning, error. [info]"):
        assert shown in text
    for raw in ("4294967296", "['", "['']", "[()]", "[True]"):
        assert raw not in text


@given(size=st.integers(min_value=0, max_value=1 << 50))
def test_a_size_is_shown_as_it_could_be_typed(size: int) -> None:
    """What the help and the errors show as a size is read back as the same number."""
    assert parse_bytes(format_bytes(size)) == size


def test_a_pattern_that_is_a_list_of_choices_is_told_as_choices() -> None:
    """No message holds a regular expression."""

    class Level(Section):
        level: str = Field(default="low", pattern="^(low|high)$")
        name: str = Field(default="a", pattern="^[a-z]{1,9}$")

    class Levels(Section):
        level: Level = Level()

    with pytest.raises(ConfigurationError, match=r"level\.level: 'mid': give one of low, high"):
        load_settings(Levels, environ={}, flags={"level.level": "mid"})
    with pytest.raises(ConfigurationError) as caught:
        load_settings(Levels, environ={}, flags={"level.name": "A!"})
    assert "[a-z]" not in str(caught.value)


def test_files_that_cannot_be_read_say_what_to_mend(tmp_path: Path) -> None:
    """A missing file, broken syntax and a document that is no table are refused by the file's name."""
    with pytest.raises(ConfigurationError, match="make the file readable"):
        load_settings(NodeSettings, file=tmp_path / "none.toml", environ={})
    with pytest.raises(ConfigurationError, match="mend its syntax"):
        load_settings(NodeSettings, file=write(tmp_path, "[node\n"), environ={})
    with pytest.raises(ConfigurationError, match="put settings in tables"):
        load_settings(NodeSettings, file=write(tmp_path, "[1]", "x.json"), environ={})


def test_settings_do_not_change_after_they_were_read() -> None:
    """Whoever holds settings may rely on them."""
    with pytest.raises(ValueError, match="frozen"):
        IndexSettings().prefix = "x"
