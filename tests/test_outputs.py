"""Which pictures a run reads and where it writes them: nothing is lost, whatever the names, links and folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared import examples

from ppexport.errors import InputError
from ppexport.imaging import outputs
from ppexport.imaging.outputs import (
    TEMPLATE,
    Existing,
    Plan,
    check_replaced,
    check_template,
    find_inputs,
    output_name,
    plan_run,
)

links = pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
not_root = pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read and write everything")


def named(template: str = TEMPLATE) -> Callable[[Path], str]:
    return lambda source: output_name(template, source, 2, "model")


def planned(inputs: list[Path | str], out: Path, template: str = TEMPLATE, **options: object) -> Plan:
    return plan_run(list(map(str, inputs)), out, named(template), **{"existing": Existing.refuse, **options})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of pictures, which are empty: nothing here looks into them."""
    folder = tmp_path / "photos"
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "sub/c.webp", "sub/deep/d.png", "sub/-e.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def targets(plan: Plan, out: Path) -> list[str]:
    return [job.target.relative_to(out).as_posix() for job in plan.jobs]


# Names


@pytest.mark.parametrize("template", ["{}", "{stem!r}", "{stem:>9}", "{other}", "{stem.x}", "{stem[0]}", "{", "}{"])
def test_fields_that_are_none_are_refused(template: str) -> None:
    with pytest.raises(InputError, match=r"\{stem\}, \{scale\}, \{suffix\} and \{model\}"):
        check_template(template)


@pytest.mark.parametrize("template", ["a/{stem}", "../{stem}", "a\\{stem}", "c:{stem}", "/x", "", ".", "..", " "])
def test_templates_that_are_no_plain_names_are_refused(template: str) -> None:
    with pytest.raises(InputError, match="file name"):
        check_template(template)


def test_names() -> None:
    for template in (TEMPLATE, "{model}_{stem}.webp", "{{x}}{stem}{suffix}"):
        check_template(template)
    for template in ("{stem}", "{{x}}{stem}", "{stem}.txt", "{suffix}_{stem}"):
        with pytest.raises(InputError, match=r"without a picture's extension: end it with \{suffix\} or \.png"):
            check_template(template)
    assert named()(Path("p/a.tar.png")) == "a.tar_x2.png"
    assert named()(Path("plain")) == "plain_x2"
    assert named("{model}_{stem}.webp")(Path("a.png")) == "model_a.webp"
    assert output_name(TEMPLATE, Path("a.heic"), 4, "m", ".png") == "a_x4.png"
    with pytest.raises(InputError, match=r"the artifact's model has the name '../m'"):
        output_name("{model}", Path("a.png"), 2, "../m")


NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)


@given(NAMES, st.text(st.sampled_from("{}stemscalufixmod_. x-/\\:!0"), max_size=24))
@examples(300)
def test_no_template_and_no_name_leaves_the_folder(name: str, template: str) -> None:
    try:
        check_template(template)
        made = output_name(template, Path("folder") / name, 2, "model")
    except InputError:
        return
    assert (Path("folder") / made).name == made
    assert made not in (".", "..")
    assert not set(made) & set("/\0")


# Inputs


def test_a_folder(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = planned([photos], out)
    assert targets(plan, out) == ["a_x2.JPG", "b_x2.png"]
    assert plan.skipped == plan.failures == ()
    assert not out.exists()


def test_a_folder_with_its_subfolders_keeps_their_structure(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = planned([photos], out, recursive=True)
    assert targets(plan, out) == ["a_x2.JPG", "b_x2.png", "sub/-e_x2.png", "sub/c_x2.webp", "sub/deep/d_x2.png"]


def test_files_and_patterns(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # A pattern that a shell did not expand, one across folders, a file without a picture's name, and one twice.
    given = [photos / "*.png", photos / "**" / "*.webp", photos / "notes.txt", photos / "b.png"]
    assert targets(planned(given, out), out) == ["b_x2.png", "c_x2.webp", "notes_x2.txt"]


def test_a_name_that_looks_like_a_pattern_is_meant_literally(tmp_path: Path) -> None:
    for name in ("a[1].png", "a1.png"):
        (tmp_path / name).touch()
    found = find_inputs([str(tmp_path / "a[1].png")])
    assert [picture.path.name for picture in found.pictures] == ["a[1].png"]


def test_what_names_nothing_fails_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    plan = planned([photos / "*.gif", tmp_path / "empty", photos / "b.png"], tmp_path / "out")
    assert len(plan.jobs) == 1
    assert [failure.reason for failure in plan.failures] == [
        f"{photos}/*.gif matches no file",
        f"{tmp_path}/empty holds no pictures (--recursive looks into its subfolders)",
    ]


@links
def test_links(photos: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").touch()
    (photos / "leaves.png").symlink_to(outside / "secret.png")
    (photos / "stays.png").symlink_to("sub/c.webp")
    (photos / "sub" / "outside").symlink_to(outside)
    (photos / "sub" / "loop").symlink_to(photos)
    (photos / "itself.png").symlink_to("itself.png")
    out = tmp_path / "out"
    plan = planned([photos], out, recursive=True)
    assert targets(plan, out) == [
        "a_x2.JPG", "b_x2.png", "itself_x2.png", "stays_x2.png", "sub/-e_x2.png", "sub/c_x2.webp", "sub/deep/d_x2.png",
    ]  # fmt: skip
    assert [failure.source.name for failure in plan.failures] == ["leaves.png", "outside"]
    assert all("is a link that leaves the folder" in failure.reason for failure in plan.failures)
    # A link that a user names is followed.
    assert targets(planned([photos / "leaves.png", photos / "sub" / "outside"], out), out) == [
        "leaves_x2.png",
        "secret_x2.png",
    ]


@not_root
def test_a_folder_that_cannot_be_read_fails_alone(photos: Path, tmp_path: Path) -> None:
    (photos / "sub").chmod(0)
    try:
        plan = planned([photos], tmp_path / "out", recursive=True)
    finally:
        (photos / "sub").chmod(0o755)
    assert len(plan.jobs) == 2
    assert [failure.reason for failure in plan.failures] == [f"{photos}/sub cannot be read: Permission denied"]


def test_a_very_deep_folder(tmp_path: Path) -> None:
    # Deeper than Python calls itself; shutil and pytest could not remove it.
    deep = tmp_path.joinpath("photos", *"d" * 400)
    deep.mkdir(parents=True)
    (deep / "a.png").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)
    try:
        found = find_inputs([str(tmp_path / "photos")], recursive=True)
    finally:
        sys.setrecursionlimit(limit)
    assert [len(picture.inside.parts) for picture in found.pictures] == [400]


# Outputs


def test_two_inputs_with_one_output_are_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.png").touch()
    given = [photos, tmp_path / "more"]
    with pytest.raises(InputError, match=r"photos/b\.png and .*more/b\.png would both be written to .*out/b_x2\.png"):
        planned(given, tmp_path / "out")
    with pytest.raises(InputError, match=r"would both be written to .*same\.png"):
        planned([photos], tmp_path / "out", "same.png")


@pytest.mark.parametrize("apart", [True, False])
def test_names_that_differ_in_case_are_refused_where_the_disk_takes_them_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    monkeypatch.setattr(outputs, "_tells_cases_apart", lambda out: apart)
    for name in ("a/x.png", "b/X.png", "c/e\u0301.png", "d/\u00e9.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    for pair in (["a", "b"], ["c", "d"]):
        given = [tmp_path / folder for folder in pair]
        if apart:
            assert len(planned(given, tmp_path / "out").jobs) == 2
        else:
            with pytest.raises(InputError, match="would both be written"):
                planned(given, tmp_path / "out")


def test_whether_this_disk_tells_cases_apart(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert outputs._tells_cases_apart(tmp_path / "new" / "folder") == (not (tmp_path / "A").exists())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("place", ["", "new", "sub", "sub/deep"])
def test_results_inside_the_input_folder_are_refused(photos: Path, place: str) -> None:
    with pytest.raises(
        InputError, match=r"lies in the input folder .*photos, so that another run would take its results"
    ):
        planned([photos], photos / place, recursive=True)
    if place:
        assert len(planned([photos], photos / place).jobs) == 2
    else:
        with pytest.raises(InputError, match="lies in the input folder"):
            planned([photos], photos)


def test_results_in_a_folder_above_are_refused_only_where_they_would_be_inputs(tmp_path: Path) -> None:
    (tmp_path / "in" / "in").mkdir(parents=True)
    (tmp_path / "in" / "in" / "a.png").touch()
    with pytest.raises(InputError, match=r"in/a_x2\.png would lie in the input folder"):
        planned([tmp_path / "in"], tmp_path, recursive=True)
    assert len(planned([tmp_path / "in" / "in"], tmp_path).jobs) == 1


def test_no_result_replaces_an_input(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"b\.png is the input .*b\.png, which is never replaced"):
        planned([photos / "b.png"], photos, "{stem}{suffix}", existing=Existing.overwrite)
    # Another input's, and by another name for the same file.
    (photos / "b_x2.png").hardlink_to(photos / "a.JPG")
    with pytest.raises(InputError, match="which is never replaced"):
        planned([photos / "b.png", photos / "a.JPG"], photos, existing=Existing.overwrite)
    with pytest.raises(InputError, match="is the input itself"):
        check_replaced(photos / "a.JPG", photos / "b_x2.png")
    check_replaced(photos / "a.JPG", photos / "b.png")
    check_replaced(photos / "none.png", photos / "none.png")


@links
def test_a_link_that_would_carry_a_result_out_of_the_folder_fails_alone(photos: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    (out / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "precious.png").write_bytes(b"precious")
    (out / "b_x2.png").symlink_to(elsewhere / "precious.png")
    (out / "sub" / "deep").symlink_to(elsewhere)
    plan = planned([photos], out, recursive=True, existing=Existing.overwrite)
    assert targets(plan, out) == ["a_x2.JPG", "sub/-e_x2.png", "sub/c_x2.webp"]
    assert [failure.source.name for failure in plan.failures] == ["b.png", "d.png"]
    assert all("would leave the folder" in failure.reason for failure in plan.failures)
    # The folder itself may be a link.
    (tmp_path / "link").symlink_to(elsewhere)
    assert len(planned([photos], tmp_path / "link").jobs) == 2


def test_results_that_are_there(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a_x2.JPG", "b_x2.png"):
        (out / name).touch()
    with pytest.raises(InputError, match=r"a_x2\.JPG exists already, like 1 other result: --existing skip leaves"):
        planned([photos], out)
    plan = planned([photos], out, recursive=True, existing=Existing.skip)
    assert [job.source.name for job in plan.skipped] == ["a.JPG", "b.png"]
    assert targets(plan, out) == ["sub/-e_x2.png", "sub/c_x2.webp", "sub/deep/d_x2.png"]
    assert len(planned([photos], out, existing=Existing.overwrite).jobs) == 2


def test_a_folder_that_results_cannot_go_to(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"b\.png is a file, and the results need a folder"):
        planned([photos], photos / "b.png" / "sub")
    if os.name != "nt":
        (tmp_path / "dangling").symlink_to("nothing")
        with pytest.raises(InputError, match="dangling is a link to nothing, and the results need a folder"):
            planned([photos], tmp_path / "dangling")


@not_root
def test_a_folder_that_may_not_be_written(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    for folder in (tmp_path / "closed" / "new", tmp_path / "closed"):
        with pytest.raises(InputError, match=f"^{folder} cannot be written: Permission denied$"):
            planned([photos], folder)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a folder that nobody can write, not even root")
def test_the_folder_that_cannot_be_written_is_named_as_it_was_given(photos: Path) -> None:
    for folder in ("/proc", "/proc/self/none"):
        with pytest.raises(InputError, match=f"^{folder} cannot be written: "):
            planned([photos], Path(folder))


def test_standard_input_is_no_file_of_many(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="- is one picture on standard input"):
        planned(["-", photos], tmp_path / "out")


TREES = st.lists(
    st.lists(st.sampled_from(["a", "b", "A", "sub"]), min_size=1, max_size=3).map(lambda parts: PurePath(*parts)),
    min_size=1,
    max_size=8,
    unique=True,
)


@given(TREES, st.booleans(), st.sampled_from([TEMPLATE, "{stem}{suffix}", "x.png", "{scale}{stem}.png"]))
@examples(60)
def test_whatever_the_tree_no_output_is_written_twice_and_none_is_an_input(
    tmp_path_factory: pytest.TempPathFactory, tree: list[PurePath], recursive: bool, template: str
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for name in tree:
        # A folder of one picture cannot be a picture of another.
        path = root / "in" / name.with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    expected = [name for name in tree if recursive or len(name.parts) == 1]
    if template == "x.png" and len({name.parent for name in expected}) < len(expected):
        with pytest.raises(InputError, match="would both be written"):
            planned([root / "in"], root / "out", template, recursive=recursive)
        return
    plan = planned([root / "in"], root / "out", template, recursive=recursive)
    results = [job.target for job in plan.jobs]
    assert len(set(results)) == len(results)
    assert all(result.is_relative_to(root / "out") for result in results)
    assert len(results) == len(expected)
    assert bool(plan.failures) == (not expected)
