"""The loop of the data engine: stages, retraining that can be stopped, promotion, pre-filling, the report."""

import dataclasses
import re
import uuid

import jax
import numpy as np
import pytest
from PIL import Image

from cases.app import read_events
from cases.models import DETECTOR, SMALL
from cases.training import write_examples
from sam_jax.checkpoints import load_checkpoint, save_checkpoint
from sam_jax.checkpoints.hub import load_model
from sam_jax.commands import main as cli
from sam_jax.detection.detector import init_detector
from sam_jax.engine import promotion
from sam_jax.engine.mask_statistics import compute_shape, compute_statistics
from sam_jax.engine.models import HeldOutMetrics, add_model, change_model, current_model, list_models, model_in_use
from sam_jax.engine.prefill import DetectorProposer, EverythingProposer, Proposal, prefill
from sam_jax.engine.promotion import promote
from sam_jax.engine.records import MaskRecord
from sam_jax.engine.report import write_report
from sam_jax.engine.retraining import drop_training, retrain
from sam_jax.engine.stages import PrefillJudgement, init_project, judge_prefilled, move_to_stage, summarize
from sam_jax.engine.store import Store
from sam_jax.modeling import init_params
from sam_jax.ops.rle import decode_rle, encode_rle
from sam_jax.training import loop

QUICK = (
    *("steps=2", "data.batch-size=2", "data.masks-per-image=2", "loss.size=32", "validation-batches=1"),
    *("prompts.point-rounds=1", "prompts.refine-rounds=0", "save-every=1", "parallel.data=1"),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    save_checkpoint(path, init_params(SMALL, jax.random.key(0)), SMALL)
    return path


@pytest.fixture
def project(tmp_path, small):
    """Returns a project of 12 images without annotations, 3 of them held out."""
    (tmp_path / "photos").mkdir()
    examples = {example.path.name: example for example in write_examples(tmp_path / "photos", 12)}
    store, new = init_project(tmp_path / "project", tmp_path / "photos", str(small), 0.25)
    assert new == 12
    return store, examples


def annotate(store, examples, count=None, annotator="ann"):
    done = 0
    while (count is None or done < count) and (image := store.claim(annotator)):
        example = examples[image.name]
        store.set_size(image.id, example.size[1], example.size[0])
        for rank, mask in enumerate(example.masks):
            store.save_mask(
                MaskRecord(
                    id=uuid.uuid4().hex,
                    picture_id=image.id,
                    annotator=annotator,
                    segmentation=mask,
                    rank=rank,
                    seconds=2.0 + rank,
                )
            )
        store.finish(image.id, annotator, seconds=6)
        done += 1


def test_a_project_begins_with_a_model_and_takes_new_images(project, tmp_path, small):
    store, _ = project
    assert [(m.number, m.state, m.source) for m in list_models(store)] == [(1, "promoted", str(small))]
    assert sum(image.split == "held_out" for image in store.images()) == 3
    Image.new("RGB", (20, 10)).save(tmp_path / "photos" / "new.png")
    assert init_project(tmp_path / "project", tmp_path / "photos", str(small), 0.25)[1] == 1
    with pytest.raises(ValueError, match="began with the model"):
        init_project(tmp_path / "project", tmp_path / "photos", "small", 0.25)


def test_stages_follow_each_other(project):
    store, _ = project
    with pytest.raises(ValueError, match="stage before or after assisted-manual"):
        move_to_stage(store, "automatic")
    for stage in ("semi-automatic", "automatic", "semi-automatic"):
        move_to_stage(store, stage)
    assert store.stage == "semi-automatic"


@pytest.mark.slow
def test_training_freezes_a_version_and_gives_a_candidate_that_is_measured(project, small, monkeypatch):
    store, examples = project
    annotate(store, examples)
    model = retrain(store, overrides=QUICK)
    assert (model.number, model.state, model.dataset, model.parent) == (2, "candidate", 1, 1)
    tuned, config = load_checkpoint(store.folder / model.source)
    start, _ = load_checkpoint(small)
    assert config == SMALL
    jax.tree.map(np.testing.assert_array_equal, tuned["image_encoder"], start["image_encoder"])
    assert current_model(store).number == 1
    assert (store.folder / "models/0002/model.json").is_file()
    assert promote(store).promoted is None
    monkeypatch.setattr(promotion, "MIN_IMAGES", 3)
    decision = promote(store)
    assert decision.candidate.held_out.masks == decision.current.held_out.masks == 6
    difference = decision.candidate.held_out.miou - decision.current.held_out.miou
    assert decision.promoted == (difference >= 0)
    low, high = re.search(r"difference: (\S+) to (\S+)\)", decision.reason).groups()
    assert float(low) - 0.01 <= difference <= float(high) + 0.01


def test_training_that_was_stopped_goes_on_with_its_data_and_config(project, monkeypatch):
    store, examples = project
    annotate(store, examples, 8)
    calls = []

    def train(config, *, resume):
        """Trains as the real function does, but is asked to stop after one step the first time."""
        calls.append((config, resume))
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "config.json").write_text("{}")
        (config.out / "model.safetensors").write_bytes(b"weights")
        return loop.TrainResult(config.out / "model.safetensors", len(calls), finished=len(calls) > 1)

    monkeypatch.setattr(loop, "train", train)
    assert retrain(store, overrides=QUICK).state == "training"
    annotate(store, examples)
    with pytest.raises(ValueError, match="still in training"):
        retrain(store, overrides=("steps=3",))
    last = retrain(store)
    assert (last.number, last.state, last.dataset) == (2, "candidate", 1)
    assert (store.folder / last.source).read_bytes() == b"weights"
    assert calls[0][0] == calls[1][0]
    assert [resume for _, resume in calls] == [False, True]

    calls.clear()
    assert retrain(store, overrides=QUICK).dataset == 2
    assert drop_training(store, "sam").state == "dropped"
    assert drop_training(store, "sam") is None
    assert not (store.folder / "models/0003/run").exists()


def test_one_training_of_a_kind_runs_at_a_time(project, monkeypatch):
    store, examples = project
    annotate(store, examples)

    def train(config, *, resume):
        with pytest.raises(ValueError, match="in another process"):
            retrain(store)
        with pytest.raises(ValueError, match="in another process"):
            drop_training(store, "sam")
        raise FloatingPointError("stopped")

    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(FloatingPointError):
        retrain(store, overrides=QUICK)
    assert drop_training(store, "sam").state == "dropped"


def test_the_page_takes_the_project_s_model_unless_another_is_given(project, tmp_path, small):
    store, _ = project
    assert model_in_use(store) == (str(small), "sam 1")
    assert model_in_use(store, "vit_b") == ("vit_b", "vit_b")
    assert model_in_use(Store(tmp_path / "new")) == ("small", "small")


def test_a_config_that_is_wrong_is_told_before_anything_is_frozen(project, tmp_path):
    store, examples = project
    annotate(store, examples)
    with pytest.raises(FileNotFoundError):
        retrain(store, config=str(tmp_path / "nothing.py"))
    with pytest.raises(ValueError, match="FIELD=VALUE"):
        retrain(store, overrides=("steps",))
    (tmp_path / "other.py").write_text(
        "from sam_jax.configs.engine_detector import get_config\n__all__ = ['get_config']\n"
    )
    with pytest.raises(ValueError, match="config that trains a sam"):
        retrain(store, config=str(tmp_path / "other.py"))
    assert summarize(store)["datasets"] == []


@pytest.mark.parametrize(("miou", "promoted"), [(50.0, True), (50.0001, True), (49.9999, False)])
def test_a_candidate_is_promoted_only_if_held_out_miou_does_not_fall(project, monkeypatch, capsys, miou, promoted):
    store, examples = project
    annotate(store, examples)
    candidate = add_model(store, "sam", "candidate", "models/{number}/model.safetensors", parent=1, dataset=1)
    figures = {1: 50.0, candidate.number: miou}
    monkeypatch.setattr(
        promotion, "evaluate", lambda store, model, held_out: HeldOutMetrics(held_out.number, figures[model.number], 6)
    )
    monkeypatch.setattr(promotion, "difference_interval", lambda *_: (-1.0, 1.0))
    monkeypatch.setattr(promotion, "MIN_IMAGES", 3)
    code = cli.main(["engine", "promote", str(store.folder)])
    assert code == (0 if promoted else 1)
    assert current_model(store).number == (2 if promoted else 1)
    written = capsys.readouterr().out
    assert f"{miou:.2f} against 50.00" in written
    assert ("no --force" in written) == (not promoted)
    events = read_events(store, "model")
    assert events[-1]["state"] == ("promoted" if promoted else "refused")
    assert events[-1]["held_out"]["miou"] == miou
    assert cli.main(["engine", "promote", str(store.folder), "--model", "9"]) == 2


@pytest.mark.parametrize("done", [1, 2, 5])
def test_there_is_no_verdict_on_few_held_out_images(tmp_path, small, monkeypatch, capsys, done):
    (tmp_path / "photos").mkdir()
    examples = {example.path.name: example for example in write_examples(tmp_path / "photos", 6)}
    store, _ = init_project(tmp_path / "project", tmp_path / "photos", str(small), 0.99)
    annotate(store, examples, done)
    candidate = add_model(store, "sam", "candidate", "models/{number}/model.safetensors", parent=1, dataset=1)
    monkeypatch.setattr(promotion, "evaluate", None)  # nothing is computed
    assert cli.main(["engine", "promote", str(store.folder)]) == 1
    written = capsys.readouterr().out
    assert f"no verdict on model 2: {done} held-out image" in written
    assert f"annotate {6 - done} more of the {6 - done} held-out images" in written
    assert "interval" not in written
    assert list_models(store)[-1] == candidate
    assert current_model(store).number == 1


def test_without_enough_held_out_images_more_are_asked_for(project, monkeypatch, capsys):
    store, examples = project
    annotate(store, examples)
    add_model(store, "sam", "candidate", "models/{number}/model.safetensors", parent=1, dataset=1)
    assert promote(store).promoted is None
    assert cli.main(["engine", "promote", str(store.folder)]) == 1
    assert "3 held-out images have masks, and on fewer than 6" in (written := capsys.readouterr().out)
    assert "--held-out 0.3" in written


def test_a_project_of_a_model_that_the_package_no_longer_has_goes_on_with_another(project, tmp_path, capsys):
    _, examples = project
    store = Store(tmp_path / "old")
    add_model(store, "sam", "promoted", "tiny")
    store.add_images(tmp_path / "photos", examples, 0.0)
    annotate(store, examples, 3)
    folder, photos = str(store.folder), str(tmp_path / "photos")
    store.set_stage("semi-automatic")
    for command in (
        ["engine", "train", folder],
        ["engine", "train", folder, "--detector"],
        ["engine", "prefill", folder, "--from", "everything"],
        ["annotate", photos, "--project", folder],
    ):
        assert cli.main(command) == 2
        assert f"sam-jax engine init {folder} --images FOLDER --model small" in capsys.readouterr().err
    assert summarize(store)["datasets"] == []
    assert cli.main(["engine", "init", folder, "--images", photos]) == 0
    assert model_in_use(store, "vit_b") == ("vit_b", "vit_b")
    stopped = add_model(store, "sam", "training", "models/{number}/model.safetensors", parent=1, dataset=1, config=[])
    assert cli.main(["engine", "init", folder, "--images", photos, "--model", "small"]) == 0
    assert model_in_use(store) == ("small", "sam 3")
    assert len(store.images()) == 12
    assert cli.main(["engine", "train", folder]) == 2
    assert "--drop" in capsys.readouterr().err
    assert drop_training(store, "sam").number == stopped.number
    assert cli.main(["engine", "init", folder, "--images", photos]) == 0
    assert cli.main(["engine", "init", folder, "--images", photos, "--model", "vit_b"]) == 2


def test_two_commands_do_not_change_a_model_at_once(project):
    store, _ = project
    model = add_model(store, "sam", "candidate", "somewhere")
    change_model(store, model, "refused")
    with pytest.raises(ValueError, match="by another command"):
        change_model(store, model, "promoted")


def blob(size, x, y, w, h):
    mask = np.zeros(size, bool)
    mask[y : y + h, x : x + w] = True
    return encode_rle(mask)


class FixedProposer:
    """Proposes the same rectangles on every image, one of them twice and one of them empty."""

    batch_size, name = 3, "fixed"

    def propose(self, images):
        boxes = [(2, 2, 20, 20), (2, 2, 20, 19), (30, 30, 20, 20), (0, 0, 0, 0), (50, 5, 10, 10)]
        return [
            [Proposal(blob(image.shape[:2], *box), 0.9 - i / 10, 0.8, None, []) for i, box in enumerate(boxes)]
            for image in images
        ]


def test_pre_filling_proposes_each_object_once_and_only_where_nobody_was(project):
    store, examples = project
    with pytest.raises(ValueError, match="semi-automatic stage"):
        prefill(store, FixedProposer())
    annotate(store, examples, 4)
    move_to_stage(store, "semi-automatic")
    (store.images("free")[0].path).write_bytes(b"broken")
    free = [p for p in store.images("free") if p.split == "train"]
    report = prefill(store, FixedProposer())
    assert len(report.failures) == sum(p.path.read_bytes() == b"broken" for p in free)
    assert report.images == len(free) - len(report.failures)
    assert report.masks == 3 * report.images
    assert prefill(store, FixedProposer()).images == 0
    masks = store.masks(store.claim("bea").id)
    assert [(m.state, m.origin, m.model, m.rank) for m in masks] == [
        ("proposed", "prefilled", "sam 1", r) for r in range(3)
    ]


def test_what_people_made_of_pre_filled_masks_is_counted(project):
    store, _ = project
    move_to_stage(store, "semi-automatic")
    prefill(store, FixedProposer(), max_images=4)
    outcomes = ["untouched", "slightly", "much", "rejected"]
    for outcome in outcomes:
        image = store.claim("ann")
        first, second, _third = store.masks(image.id)
        size = (image.height, image.width)
        if outcome in ("slightly", "much"):
            box = (2, 2, 20, 21) if outcome == "slightly" else (2, 2, 20, 40)
            store.save_mask(dataclasses.replace(first, segmentation=blob(size, *box), state="edited", annotator="ann"))
        elif outcome == "rejected":
            store.save_mask(dataclasses.replace(first, state="rejected", annotator="ann"))
        store.delete_mask(second.id, "ann")
        store.finish(image.id, "ann")
    judged = judge_prefilled(store)
    assert judged == PrefillJudgement(accepted=0, slightly=1, much=1, rejected=1 + 4, left=1 + 4)
    assert judged.precision == 1 / 7


@pytest.mark.parametrize("accepted", [0, 1, 3])
def test_masks_that_nobody_looked_at_say_nothing_of_precision(project, capsys, accepted):
    store, _ = project
    move_to_stage(store, "semi-automatic")
    prefill(store, FixedProposer(), max_images=2)
    for _ in range(2):
        image = store.claim("ann")
        for mask in store.masks(image.id)[:accepted]:
            store.save_mask(dataclasses.replace(mask, state="accepted", annotator="ann"))
        store.finish(image.id, "ann")
    judged = judge_prefilled(store)
    assert (judged.accepted, judged.left) == (2 * accepted, 6 - 2 * accepted)
    assert judged.precision == (1.0 if accepted else None)
    assert cli.main(["engine", "status", str(store.folder)]) == 0
    written = capsys.readouterr().out
    assert ("precision" in written) == (accepted > 0)
    assert ("nobody judged" in written) == (accepted < 3)
    assert (f": {judged.left}\n" in written) == (accepted < 3)


def test_a_detector_and_everything_mode_propose_masks_of_the_images_size(small, tmp_path):
    path = tmp_path / "detector.safetensors"
    save_checkpoint(path, init_detector(DETECTOR, jax.random.key(1)), DETECTOR)
    images = [np.random.default_rng(0).integers(0, 255, size, np.uint8) for size in ((40, 60, 3), (50, 30, 3))]
    model = load_model(small)
    for proposer, batch in (
        (DetectorProposer(model, path, "d", min_score=0.0, batch_size=3), images),
        (EverythingProposer(model, "e", min_predicted_iou=0.0, min_stability=0.0, points_per_side=2), images[:1]),
    ):
        found = proposer.propose(batch)
        assert len(found) == len(batch)
        for image, proposals in zip(batch, found, strict=True):
            assert all(decode_rle(p.segmentation).shape == image.shape[:2] for p in proposals)
            scores = [p.score for p in proposals]
            assert scores == sorted(scores, reverse=True)
    strict = DetectorProposer(model, path, "d", min_score=1.01, batch_size=3)
    assert strict.propose(images) == [[], []]


def test_pre_filling_that_proposes_nothing_says_why(project, tmp_path, capsys):
    store, _ = project
    move_to_stage(store, "semi-automatic")
    command = ["engine", "prefill", str(store.folder), "--max-images", "1"]
    everything = [*command, "--from", "everything", "--min-stability", "0.5"]
    assert cli.main([*everything, "--detector", "some.safetensors"]) == 2
    assert "got both" in capsys.readouterr().err
    grid = ["--points-per-side", "4", "--stability-offset", "0.25", "--min-predicted-iou", "1"]
    assert cli.main([*everything, *grid]) == 0
    written = capsys.readouterr().out
    assert "4 points a side, predicted IoUs from 1, stability from 0.5 between 0.25 and -0.25" in written
    assert "of 48 predicted masks" in written
    assert cli.main([*everything, "--min-predicted-iou", "1"]) == 0
    written = capsys.readouterr().out
    assert (
        "0 masks on 1 images, by sam 1, everything, 32 points a side, predicted IoUs from 1, stability from 0.5"
        in written
    )
    assert (
        "1 images are without masks: of 3072 predicted masks 3072 have a predicted IoU of at most 1; --min-pred"
        in written
    )
    save_checkpoint(tmp_path / "detector.safetensors", init_detector(DETECTOR, jax.random.key(1)), DETECTOR)
    detector = [*command, "--detector", str(tmp_path / "detector.safetensors"), "--batch", "1"]
    assert cli.main([*detector, "--min-score", "1"]) == 0
    assert (
        "10 boxes have a score below 1, the masks of 0 a predicted IoU below 0; --min-score" in capsys.readouterr().out
    )
    for option, value in (("--min-stability", "0.5"), ("--stability-offset", "1"), ("--points-per-side", "8")):
        assert cli.main([*detector, option, value]) == 2
        assert f"{option} goes with --from everything" in capsys.readouterr().err


def test_shapes_are_measured_as_the_paper_does():
    size = (40, 80)
    square = compute_shape(blob(size, 20, 10, 20, 20))
    assert square == pytest.approx(((400 / 3200) ** 0.5, 0.0, 30 / 80, 20 / 40))
    corner = decode_rle(blob(size, 20, 10, 20, 20))
    corner[10:20, 30:40] = False  # an L: its hull lacks half of the part that was cut off
    assert compute_shape(encode_rle(corner)).concavity == pytest.approx(1 - 300 / 350, abs=0.03)
    ring = decode_rle(blob(size, 20, 10, 20, 20))
    ring[15:25, 25:35] = False
    assert compute_shape(encode_rle(ring)).concavity == pytest.approx(0.25)
    assert compute_shape(blob(size, 79, 39, 1, 1)).concavity == 0


def test_the_report_shows_every_stage_that_has_masks(project):
    store, examples = project
    assert "no finished image" in write_report(store).read_text()
    annotate(store, examples, 6)
    move_to_stage(store, "semi-automatic")
    annotate(store, examples)
    by_stage = compute_statistics(store)
    assert list(by_stage) == ["assisted-manual", "semi-automatic"]
    assert sum(len(m.per_image) for m in by_stage.values()) == 9  # held-out images are not the data set's
    assert set(by_stage["assisted-manual"].seconds) == {2.0, 3.0}
    text = write_report(store).read_text()
    for name in ("masks_per_picture", "size", "concavity", "seconds", "states", "centres"):
        assert f"({name}.png)" in text
        with Image.open(store.folder / "report" / f"{name}.png") as image:
            assert len(image.convert("L").getcolors() or []) > 5


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
@pytest.mark.parametrize("seconds", [0.0, 4.0])
def test_a_report_of_masks_without_times_warns_of_nothing(project, seconds):
    store, examples = project
    annotate(store, examples, 4)
    with store.transaction() as db:
        db.execute("UPDATE masks SET record = json_set(record, '$.seconds', ?)", (seconds,))
    change_model(store, current_model(store), "promoted", HeldOutMetrics(1, 0.0, 3))
    assert "(seconds.png)" in write_report(store).read_text()


def test_commands_say_what_is_missing(tmp_path, capsys):
    assert cli.main(["engine", "status", str(tmp_path)]) == 2
    assert "sam-jax engine init" in capsys.readouterr().err
    assert cli.main(["engine", "init", str(tmp_path / "project"), "--images", str(tmp_path / "nothing")]) == 2
    assert not (tmp_path / "project").exists()


def test_status_and_the_list_of_unfinished_images(project, tmp_path, capsys):
    store, examples = project
    annotate(store, examples, 5)
    assert cli.main(["engine", "status", str(store.folder)]) == 0
    written = capsys.readouterr().out
    assert "stage: assisted-manual" in written
    assert "10 manual, accepted" in written
    assert cli.main(["engine", "remaining", str(store.folder), "--out", str(tmp_path / "rest.txt")]) == 0
    listed = (tmp_path / "rest.txt").read_text().split()
    assert listed == [str(p.path) for p in store.images("free") if p.split == "train"]
    assert Store(store.folder).stage == "assisted-manual"
