"""`ppexport evaluate`: PSNR-Y and SSIM-Y on folders of pictures, of one network or artifact or of several in turns."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppexport.cli.console import check_result_target, emit_json, people, percent, progress_bar, table
from ppexport.cli.options import Arch, Checkpoint, Json, Options, Scale, Threads, load, network_options
from ppexport.errors import InputError, counted

if TYPE_CHECKING:
    from ppexport.device.artifact import Manifest
    from ppexport.networks.subject import Subject
    from ppexport.parity.contest import Contender, Contest

EXAMPLE = "Example: ppexport evaluate pp_atd_light_x2 --hr Set5 --scale 2"


def evaluate(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUBJECT",
            help="a model, a weights file or an artifact folder; several of one scale are compared, and a network may "
            "have settings of its own: FILE,arch=NAME,ratio=0.25",
        ),
    ] = None,
    hr: Annotated[
        Path, typer.Option(help="folder of HR pictures; if some are called NAME_HR.png, only these are used")
    ] = ...,  # type: ignore[assignment]
    lr: Annotated[
        Path | None, typer.Option(help="folder of their LR pictures; without it they are made by bicubic shrinking")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="also draw PSNR-Y against time and against multiply-adds, on one page"),
    ] = None,
    scale: Scale = None,
    checkpoint: Checkpoint = None,
    arch: Arch = None,
    option: Options = None,
    threads: Threads = None,
    record: Annotated[
        str | None,
        typer.Option(help="also write the means into the model's numerics.yaml, under this name of the data set"),
    ] = None,
    json: Json = None,
) -> None:
    """PSNR-Y and SSIM-Y on folders of pictures, beside bicubic enlargement.

    Several subjects go through the same pictures in turns and become one table: quality, seconds, size and
    multiply-adds. Seconds are those of PyTorch for a network, and of the runtime for an artifact.
    """
    from ppexport.networks.subject import parse_subjects

    named = parse_subjects(subjects or [])
    if len(named) < 2 and plot is None:
        _evaluate_one(named[0] if named else None, hr, lr, scale, checkpoint, arch, option, threads, record, json)
        return
    for flag, value in (("--record", record), ("--checkpoint", checkpoint)):
        if value is not None:
            raise InputError(f"{flag} is for one subject without --plot: a weights file can be a subject of its own")
    if not named:
        raise InputError("--plot needs subjects: a model, a weights file or an artifact folder")
    if plot is not None:
        check_result_target(plot, ".html")
    _evaluate_several(named, hr, lr, scale, arch, option, plot, threads, json)


def _evaluate_one(
    subject: Subject | None,
    hr: Path,
    lr: Path | None,
    scale: int | None,
    checkpoint: Path | None,
    arch: str | None,
    option: list[str] | None,
    threads: int | None,
    record: str | None,
    json: str | None,
) -> None:
    """Print the figures of every picture, and record the means where that is asked for."""
    from ppexport.parity.evaluation import artifact_upscaler, find_pairs, network_upscaler
    from ppexport.parity.evaluation import evaluate as run_evaluation
    from ppexport.report.records import NETWORK, artifact_key, card_of_artifact, check_record
    from ppexport.report.records import record_evaluation as write_record

    own = bool(option) or checkpoint is not None or arch is not None
    with ExitStack() as stack:
        if subject is not None and _is_artifact(subject):
            from ppexport.backends.backend import open_artifact

            runner = stack.enter_context(open_artifact(Path(subject.target), threads=threads))
            manifest = runner.artifact.manifest
            if own:
                raise InputError("an artifact has its weights and options inside")
            if scale not in (None, runner.scale):
                raise InputError(f"{subject.target} is for scale {runner.scale}, not {scale}")
            run, factor, name = artifact_upscaler(runner), runner.scale, subject.text
            key, beside = artifact_key(manifest), None if record is None else card_of_artifact(manifest)
            _note_half([manifest], json)
        else:
            from ppexport.networks.card import find_card
            from ppexport.networks.load import card_of, load_card

            if record is not None and (subject is None or own or subject.settings or subject.is_file):
                raise InputError("--record writes beside a model's card: name a model, without a checkpoint or options")
            beside = None if record is None or subject is None else find_card(subject.target)
            if subject is None or checkpoint is not None:
                network = load(None if subject is None else subject.text, checkpoint, arch, scale, option)
            else:
                network = load_card(*subject.card_and_weights(arch, scale, network_options(option)))
            run, factor, name, key = network_upscaler(network, threads), network.scale, card_of(network).name, NETWORK
        if record is not None and beside is not None:
            check_record(beside[1], record)
        pairs = find_pairs(hr, lr, factor)
        with progress_bar("pictures") as progress:
            result = run_evaluation(run, pairs, factor, progress)
    if record is not None and beside is not None:
        people(json).print(f"recorded in {write_record(beside[1], record, beside[0], result, key)}")
    emit_json(json, {"model": name, "hr": str(hr), **result.to_dict()})
    rows = [
        [s.name, f"{s.psnr_y:.3f}", f"{s.ssim_y:.4f}", f"{s.bicubic_psnr_y:.3f}", f"{s.bicubic_ssim_y:.4f}"]
        for s in (*result.scores, result.mean)
    ]
    columns = ["picture", "PSNR-Y dB", "SSIM-Y", "bicubic dB", "bicubic SSIM-Y"]
    people(json).print(table(f"{name} x{factor}", columns, rows))


def _evaluate_several(
    named: list[Subject],
    hr: Path,
    lr: Path | None,
    scale: int | None,
    arch: str | None,
    option: list[str] | None,
    plot: Path | None,
    threads: int | None,
    json: str | None,
) -> None:
    """Print a row for every subject, and draw the page *plot*."""
    from ppexport.backends.backend import open_artifact
    from ppexport.device.artifact import read_artifact
    from ppexport.networks.subject import told_apart
    from ppexport.parity.contest import ArtifactContender, NetworkContender, common_scale, run_contest
    from ppexport.parity.evaluation import find_pairs

    if plot is not None:
        from ppexport.report.material import Material
        from ppexport.report.page import check_installed, write_page

        check_installed()
    own = network_options(option)
    # Everything that can be refused is refused before the first network is loaded.
    manifests = {one.text: read_artifact(Path(one.target)).manifest for one in named if _is_artifact(one)}
    if manifests and (own or arch is not None):
        raise InputError(
            "an artifact has its weights and options inside: give --arch and --option behind the names of networks, as "
            "in FILE,arch=NAME,ratio=0.25"
        )
    cards = {one.text: one.card_and_weights(arch, scale, own) for one in named if one.text not in manifests}
    archs = [cards[one.text][0].arch if one.text in cards else manifests[one.text].arch for one in named]
    labels = told_apart([one.label(name) for one, name in zip(named, archs, strict=True)], named)
    scales = [cards[one.text][0].scale if one.text in cards else manifests[one.text].scale for one in named]
    factor = common_scale(dict(zip(labels, scales, strict=True)))
    if scale not in (None, factor):
        raise InputError(f"the artifacts are for scale {factor}, not {scale}")
    pairs = find_pairs(hr, lr, factor)
    _note_half(list(manifests.values()), json)
    with ExitStack() as stack, progress_bar("runs") as progress:
        contenders: list[Contender] = [
            NetworkContender(label, *cards[one.text], threads)
            if one.text in cards
            else ArtifactContender(label, stack.enter_context(open_artifact(Path(one.target), threads=threads)))
            for label, one in zip(labels, named, strict=True)
        ]
        contest = run_contest(contenders, pairs, hr, progress, threads)
    emit_json(json, contest.to_dict())
    _show(contest, json)
    if plot is not None:
        write_page(Material(contests=[contest]), plot, "ppexport evaluate")
        people(json).print(f"{plot}: PSNR-Y against time and against multiply-adds")


def _show(contest: Contest, json: str | None) -> None:
    """Print the table of *contest*, and what its figures are."""
    from ppexport.parity.contest import CLOCK, threads_of

    rows = []
    for one in contest.measured:
        data = one.to_dict()
        rows.append(
            [
                data["subject"], f"{data['psnr_y']:.3f}", f"{data['ssim_y']:.4f}", f"{data['seconds']:.3f}",
                f"{data['bytes'] / 1e6:.2f}",
                "" if data["macs_published"] is None else f"{data['macs_published'] / 1e9:.2f}",
                "" if data["pure_share"] is None else percent(data["pure_share"]),
            ]
        )  # fmt: skip
    psnr, ssim = contest.bicubic
    rows.append(["bicubic", f"{psnr:.3f}", f"{ssim:.4f}", "", "", "", ""])
    columns = ["subject", "PSNR-Y\ndB", "SSIM-Y", "s a\npicture", "MB", "G a\npicture", "pure"]
    console = people(json)
    console.print(table(f"{counted(contest.pictures, 'picture')} x{contest.scale}", columns, rows))
    console.print(f"Seconds: {CLOCK} over the pictures, on {contest.machine['cpu']}, {threads_of(contest)}.")
    for place in dict.fromkeys(one.contender.runs_in for one in contest.measured):
        labels = [one.contender.label for one in contest.measured if one.contender.runs_in == place]
        console.print(f"  {place}: {', '.join(labels)}")
    console.print(
        "MB: the weights file, or the artifact's model. G: 10^9 multiply-adds as published, mean over the pictures: of "
        "a network with the picture's own Pure-Pass mask, of an artifact all of its overlapping tiles with their "
        "slots. Pure: share of pixels."
    )


def _is_artifact(subject: Subject) -> bool:
    """Whether *subject* is an artifact folder. Raises InputError for one with settings, which it would ignore."""
    from ppexport.device.artifact import MANIFEST

    found = (Path(subject.target) / MANIFEST).is_file()
    if found and subject.settings:
        given = ", ".join(f"{name}={value}" for name, value in subject.settings.items())
        raise InputError(
            f"{subject.target} is an artifact, which has its options inside: leave {given} out, or export the network "
            "with it"
        )
    return found


def _note_half(manifests: list[Manifest], json: str | None) -> None:
    """Say where figures are those of half-precision weights alone."""
    from ppexport.report.records import half_in_single

    for precision in dict.fromkeys(m.precision for m in manifests if half_in_single(m)):
        people(json).print(
            "note: ONNX Runtime computes half precision in fp32 on a CPU, so these are figures of "
            f"{precision} weights; `ppexport parity` rounds every result"
        )
