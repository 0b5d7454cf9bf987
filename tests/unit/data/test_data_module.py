import json
import os
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from layouts import (
    HEIGHT,
    WIDTH,
    make_flow,
    make_teacher,
    write_backgrounds,
    write_evaluation,
    write_foregrounds,
    write_video,
)
from torch import nn

from ptq4vm import distributed
from ptq4vm.data import (
    Auto,
    Builtin,
    BuiltinSource,
    Composites,
    CutOuts,
    EvaluationSource,
    EvaluationTree,
    VideoMattingDataModule,
    Videos,
    storage,
)
from ptq4vm.data.background_clips import BackgroundClips
from ptq4vm.data.drawing import draw_sequences
from ptq4vm.data.loading import collate_chunk
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import MattingOutput, Teacher

COMPOSITES, VIDEOS, CUT_OUTS = Composites("fg", "bg"), Videos("vid"), CutOuts("vid", "bg")


@pytest.fixture
def make(tmp_path):
    write_foregrounds(tmp_path / "fg")
    write_backgrounds(tmp_path / "bg")
    write_evaluation(tmp_path / "ev")
    write_video(tmp_path / "vid" / "a.avi")

    def build(**settings):
        defaults = {
            "root": tmp_path, "source": COMPOSITES, "evaluation": "ev", "num_sequences": 4,
            "seq_length": 3, "height": HEIGHT, "width": WIDTH, "cache_dir": tmp_path / "cache",
        }  # fmt: skip
        return VideoMattingDataModule(**(defaults | settings))

    return build


def attach(module, **settings):
    (teacher, teacher_calls), (flow, flow_calls) = make_teacher(), make_flow()
    module.attach(teacher, flow, **settings)
    return teacher_calls, flow_calls


def files(tmp_path, pattern="cache/calibration/*/**/*.safetensors"):
    return sorted(tmp_path.glob(pattern))


@pytest.mark.parametrize(
    "source", [Builtin(), COMPOSITES, EvaluationTree("ev"), VIDEOS, CUT_OUTS], ids=repr
)
@pytest.mark.parametrize("augment", [True, False])
def test_calibration_sequences_of_every_source(make, source, augment):
    module = make(source=source, augment=augment)
    module.setup("fit")
    _, flow_calls = attach(module)
    clip = module.calibration_set[2]
    assert len(module.calibration_set) == 4
    assert clip.index == 2
    assert clip.src.shape == (3, 3, HEIGHT, WIDTH)
    assert clip.teacher_pha.shape == (3, 1, HEIGHT, WIDTH)
    assert [state.shape for state in clip.teacher_state] == [
        (3, 1, HEIGHT // s, WIDTH // s) for s in (2, 4)
    ]
    assert clip.flow.shape == (2, 2, HEIGHT, WIDTH)
    assert clip.visible.shape == (2, 1, HEIGHT, WIDTH)
    assert all(
        part is None or part.dtype == torch.float32
        for part in (*clip[1:5], *clip.teacher_state, *clip[6:8], *clip.first_state)
    )
    assert torch.equal(clip.pha, clip.teacher_pha) == (source == VIDEOS)
    exact = source == Builtin() and not augment
    assert len(flow_calls) == (0 if exact else 4)
    assert ((clip.flow == 0.5).all()) != exact
    assert set(clip.visible.unique().tolist()) <= {0, 1}


def test_teacher_outputs_belong_to_the_stored_frames(make):
    module = make()
    attach(module)
    for clip in (module.calibration_set[i] for i in range(4)):
        output = make_teacher()[0].forward(clip.src[None])
        torch.testing.assert_close(clip.teacher_pha, output.pha[0])
        torch.testing.assert_close(clip.teacher_state[1], output.state[1][0], atol=1e-3, rtol=0)


def test_half_of_the_sequences_begin_with_a_settled_state(make):
    module = make(settle=5)
    attach(module)
    forward = make_teacher()[0].forward
    settled = 0
    for clip in (module.calibration_set[i] for i in range(4)):
        # Frames 0, 1, 2 to and fro, up to frame 0.
        before = forward(clip.src[None, [1, 0, 1, 2, 1]]).state
        if clip.first_state[0].any():
            settled += 1
            expected = [state[0, -1] for state in before]
        else:
            expected = [torch.zeros_like(state[0, -1]) for state in before]
        for first, state in zip(clip.first_state, expected, strict=True):
            torch.testing.assert_close(first, state, atol=1e-3, rtol=0)
        output = forward(clip.src[None], tuple(state[None] for state in clip.first_state))
        torch.testing.assert_close(clip.teacher_pha, output.pha[0])
        torch.testing.assert_close(clip.teacher_state[0], output.state[0][0], atol=1e-3, rtol=0)
    assert settled == 2
    assert make().contract()["settle"] == 0
    batch = next(iter(module.train_dataloader()))
    assert [state.shape for state in batch.first_state] == [
        (batch.src.shape[0], 1, HEIGHT // s, WIDTH // s) for s in (2, 4)
    ]


def test_a_clip_of_one_frame_settles_on_it(make):
    module = make(settle=3, seq_length=1)
    attach(module)
    first = [module.calibration_set[i].first_state[0] for i in range(4)]
    assert sum(bool(state.any()) for state in first) == 2


def test_a_sequence_at_a_time_whatever_their_number(make):
    seen = []
    teacher_calls, flow_calls = attach(
        make(num_sequences=9), progress=lambda *what: seen.append(what)
    )
    assert teacher_calls == [(1, 3, 3, HEIGHT, WIDTH)] * 9
    assert flow_calls == [(3, 3, HEIGHT, WIDTH)] * 9
    told = {
        kind: [(done, total) for done, total, what in seen if what == kind] for _, _, kind in seen
    }
    assert told == {
        "drawing sequences": [(i, 9) for i in range(1, 10)],
        "looking for calibration sequences": [(i, 9) for i in range(9)],
        "calibration sequences": [(i, 9) for i in range(1, 10)],
    }


def test_nothing_is_made_twice(make, tmp_path):
    attach(make())
    times = [path.stat().st_mtime_ns for path in files(tmp_path)]
    assert len(times) == 4
    assert attach(make()) == ([], [])
    assert [path.stat().st_mtime_ns for path in files(tmp_path)] == times


def test_a_file_is_verified_once_in_a_process_unless_it_changes(make, tmp_path, monkeypatch):
    verified, read = [], storage.read_tensors

    def counting(path, verify=True):
        verified.extend([path.name] if verify else [])
        return read(path, verify)

    monkeypatch.setattr(storage, "read_tensors", counting)
    written = make()
    attach(written)
    attach(written.batches(2, None))
    assert len(list(written.calibration_set)) == 4
    assert verified == []
    found = make()
    attach(found)
    assert len(verified) == 4
    assert attach(found.batches(2, 3)) == ([], [])
    assert len(list(found.calibration_set)) == 4
    assert len(verified) == 4
    os.utime(files(tmp_path)[2], (1, 1))
    assert len(list(found.calibration_set)) == 4
    assert verified[4:] == ["00002.safetensors"]


def test_other_batches_are_of_the_same_clips(make):
    module = make()
    view = module.batches(2, 3)
    attach(view)
    assert view.calibration_set is module.calibration_set
    assert [len(data.train_dataloader()) for data in (module, view)] == [4, 3]
    assert (module.batch_size, module.steps_per_epoch) == (1, None)
    assert view.contract() == module.contract() | {"batch_size": 2, "steps_per_epoch": 3}
    with pytest.raises(PTQ4VMError, match="Expected batch_size of at least 1"):
        module.batches(0, None)


def test_a_fit_goes_on_where_its_module_says(make):
    module = make(num_sequences=8, batch_size=2)
    attach(module)
    epochs = module.train_dataloader().sampler
    _, second = list(epochs), list(epochs)
    fitted = SimpleNamespace(reached=(1, 3))
    module.trainer = SimpleNamespace(training=True, lightning_module=fitted)
    assert list(module.train_dataloader().sampler) == second[6:]
    module.trainer.training = False
    assert list(module.train_dataloader().sampler) != second[6:]


def test_an_interrupted_run_goes_on(make, tmp_path):
    def interrupt(done, total, what):
        if done == 2 and what == "calibration sequences":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attach(make(), progress=interrupt)
    assert len(files(tmp_path)) == 2
    module = make()
    teacher_calls, flow_calls = attach(module)
    assert len(teacher_calls) == len(flow_calls) == 2
    assert not list(tmp_path.glob("cache/**/.*"))
    fresh = make(cache_dir=tmp_path / "other")
    attach(fresh)
    for i in range(4):
        assert torch.equal(module.calibration_set[i].src, fresh.calibration_set[i].src)


def unknown_type(data):
    """Give the first tensor of a safetensors file a dtype that older versions do not support."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["new"] = {"dtype": "F4", "shape": [0], "data_offsets": [0, 0]}
    changed = json.dumps(header).encode()
    return len(changed).to_bytes(8, "little") + changed + data[8 + size :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"?" * 100,
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        lambda data: data.replace(b"00001.safetensors", b"00002.safetensors"),
        unknown_type,
    ],
)
def test_a_damaged_file_is_remade_with_a_warning(make, tmp_path, damage):
    module = make()
    attach(module)
    before = module.calibration_set[1]
    (path,) = tmp_path.glob("cache/calibration/*/00001.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PTQ4VMError, match="Run again: it will be remade"):
        module.calibration_set[1]
    with pytest.warns(
        UserWarning, match=r"Remaking .*00001\.safetensors, which is damaged or stale"
    ):
        attach(make())
    after = module.calibration_set[1]
    assert torch.equal(before.src, after.src)
    assert torch.equal(before.teacher_pha, after.teacher_pha)
    assert torch.equal(before.flow, after.flow)


def test_other_teachers_and_flows_get_their_own_files(make, tmp_path):
    attach(make())
    make().attach(make_teacher("another")[0], make_flow("another")[0])
    assert len(files(tmp_path)) == 4 * 2


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"seq_length": 2},
        {"num_sequences": 5},
        {"augment": False},
        {"labels": False},
        {"height": 40},
        {"enlarge": 2},
        {"source": Composites("fg", "bg", photographs=True)},
    ],
)
def test_every_setting_makes_another_set(make, tmp_path, change):
    attach(make())
    attach(make(**change))
    assert len(list(tmp_path.glob("cache/calibration/*"))) == 2


def test_enlarged_sequences_have_the_size_asked_for(make):
    module = make(
        source=[COMPOSITES, VIDEOS, CUT_OUTS, Builtin(), EvaluationTree("ev")],
        num_sequences=5,
        enlarge=1.5,
    )
    attach(module)
    for clip in module.calibration_set:
        assert clip.src.shape[-2:] == clip.pha.shape[-2:] == (HEIGHT, WIDTH)
    with pytest.raises(PTQ4VMError, match=r"enlarge of at least 1, got 0\.5"):
        make(enlarge=0.5)


def test_photographs_are_backgrounds_too(make):
    plain, more = make(), make(source=Composites("fg", "bg", photographs=True))
    for module in (plain, more):
        module.setup("fit")
    names = [
        {name.split("+")[1] for name in m._clips.calibration_sources[0].names}
        for m in (plain, more)
    ]
    assert {"coffee.png", "brick.png"} <= names[1] - names[0]
    assert names[0] < names[1]
    attach(more)


def test_changed_files_make_another_set(make, tmp_path):
    attach(make())
    write_backgrounds(tmp_path / "bg", stills=("room", "hall", "yard"))
    attach(make())
    assert len(list(tmp_path.glob("cache/calibration/*"))) == 2


@pytest.mark.parametrize("source", [Builtin(), COMPOSITES, EvaluationTree("ev")], ids=repr)
def test_label_free_calibration_knows_no_labels(make, tmp_path, source):
    module = make(source=source, labels=False, augment=False)
    _, flow_calls = attach(module)
    clip = module.calibration_set[0]
    assert torch.equal(clip.pha, clip.teacher_pha)
    assert clip.fgr is None
    assert len(flow_calls) == 4  # the exact flow would depend on the true alpha


def test_several_sources_take_turns(make):
    module = make(source=[COMPOSITES, VIDEOS, CUT_OUTS], num_sequences=5, augment=False)
    attach(module)
    kinds = [type(place.source).__name__ for place in module._clips.sequences]
    assert kinds == [
        "VideoMatteSource",
        "VideoSource",
        "CutoutSource",
        "VideoMatteSource",
        "VideoSource",
    ]
    clips = [module.calibration_set[i] for i in range(5)]
    assert [clip.fgr is not None for clip in clips] == [True, False, True, True, False]
    assert [torch.equal(clip.pha, clip.teacher_pha) for clip in clips] == [
        False,
        True,
        False,
        False,
        True,
    ]
    assert next(iter(module.batches(5, None).train_dataloader())).pha.shape[0] == 5
    with pytest.raises(PTQ4VMError, match="Expected source to be Auto or of Builtin, Composites"):
        make(source=[COMPOSITES, "videos"])
    for wrong in ([], [Auto(), VIDEOS], "auto"):
        with pytest.raises(PTQ4VMError, match=r"Expected (source|Auto alone)"):
            make(source=wrong)


def test_people_cut_out_are_composed_with_other_backgrounds(make, tmp_path):
    module = make(source=CUT_OUTS, augment=False)
    attach(module)
    place = module._clips.sequences[0]
    alpha = make_teacher()[0].forward(torch.zeros(1, 3, 3, HEIGHT, WIDTH)).pha[0]
    person = place.source.people.read(0, place.start, place.start + 3).src
    layers = place.source.read_layers(place.clip, place.start, place.start + 3)
    assert torch.equal(layers.pha, alpha)
    assert torch.equal(layers.fgr, 1 - person)  # the foreground of make_teacher
    background = BackgroundClips(tmp_path / "bg").read(
        place.source._pairs[place.clip][1], place.start, place.start + 3, (HEIGHT, WIDTH)
    )
    expected = layers.fgr * alpha + background * (1 - alpha)
    torch.testing.assert_close(module.calibration_set[0].src, expected, atol=1 / 255, rtol=0)


def test_held_out_clips_are_seen_by_scoring_alone(make, tmp_path):
    write_video(tmp_path / "vid" / "b.avi")
    module = make(
        source=[COMPOSITES, VIDEOS, CUT_OUTS], num_sequences=12, held_out=["b", "room", "0001"]
    )
    attach(module)
    names = [place.source.names[place.clip] for place in module._clips.sequences]
    assert not [name for name in names if "b.avi" in name or "room" in name or "0001" in name]
    assert module.held_out_dataloader() is None
    module.add_references(make_teacher()[0], make_flow()[0])
    clips = list(module.held_out_dataloader())
    assert {clip.name for clip in clips} == {"vid/b.avi+room"}
    assert clips[0].pha is None
    assert clips[0].float_pha.shape == (1, 8, 1, HEIGHT, WIDTH)
    unscored = make(held_out=["0001", "room"])
    with pytest.raises(PTQ4VMError, match=r"one folder of videos .* got Composites\. Name one"):
        unscored.content()
    with pytest.raises(PTQ4VMError, match="Correct held_out"):
        make(source=VIDEOS, held_out=["*"]).setup("fit")
    with pytest.raises(PTQ4VMError, match="Expected clips that are not held out"):
        make(held_out=["000*"]).setup("fit")
    with pytest.raises(PTQ4VMError, match=r"Expected backgrounds named .* Correct held_out"):
        make(held_out=["room", "hall", "street"]).setup("fit")


def test_references_are_the_float_network_over_whole_clips(make, tmp_path):
    """Compute the references once, with the state carried over from chunk to chunk."""

    def counting(src, state=None):
        calls.append(len(src[0]))
        start = torch.zeros(()) if state is None else state[0][0]
        steps = start + torch.arange(1, src.shape[1] + 1) / 10
        pha = steps.view(1, -1, 1, 1, 1).expand(1, -1, 1, *src.shape[-2:])
        return MattingOutput(src, pha, (steps[None],))

    calls = []
    teacher = Teacher(counting, "counting")
    for _ in range(2):
        module = make(eval_chunk=2)
        module.add_references(teacher, make_flow()[0])
        chunks = [module.evaluation_set[i] for i in range(len(module.evaluation_set))]
        assert [round(float(clip.float_pha[-1].mean()), 3) for clip in chunks] == [
            0.2,
            0.4,
            0.5,
        ] * 3
        assert calls == [2, 2, 1] * 3


def test_label_free_calibration_reads_composites_without_alpha(make, tmp_path):
    write_evaluation(tmp_path / "plain", parts=("com",))
    attach(make(source=EvaluationTree("plain"), labels=False))
    with pytest.raises(PTQ4VMError, match="labels: false"):
        make(source=EvaluationTree("plain")).setup("fit")


def test_each_sequence_is_augmented_in_its_own_way(make, tmp_path):
    write_evaluation(tmp_path / "single", names=("s/c",), frames=3)
    module = make(source=EvaluationTree("single"), num_sequences=2)
    attach(module)
    assert not torch.allclose(
        module.calibration_set[0].src, module.calibration_set[1].src, atol=0.02
    )
    plain = make(source=EvaluationTree("single"), num_sequences=2, augment=False)
    attach(plain)
    assert torch.equal(plain.calibration_set[0].src, plain.calibration_set[1].src)


def test_sequences_take_clips_in_turn_and_begin_anywhere(tmp_path):
    source = EvaluationSource(write_evaluation(tmp_path, frames=9))
    drawn = draw_sequences(source, count=12, length=3, seed=0)
    assert all({place.clip for place in drawn[i : i + 3]} == {0, 1, 2} for i in range(0, 12, 3))
    assert len({place.start for place in drawn}) > 3
    assert all(0 <= place.start <= 6 for place in drawn)
    assert drawn == draw_sequences(source, 12, 3, 0) != draw_sequences(source, 12, 3, 1)


def test_single_frames_need_no_flow(make):
    module = make(seq_length=1)
    assert attach(module)[1] == []
    assert module.calibration_set[0].flow.shape == (0, 2, HEIGHT, WIDTH)


def test_per_frame_teachers_have_no_state(make):
    module = make(batch_size=2)
    module.attach(make_teacher(states=0)[0], make_flow()[0])
    assert module.calibration_set[0].teacher_state == ()
    assert next(iter(module.train_dataloader())).teacher_state == ()


def test_batches(make):
    module = make(batch_size=2)
    attach(module)
    batches = list(module.train_dataloader())
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == [0, 1, 2, 3]
    for batch in batches:
        assert batch.src.shape == (2, 3, 3, HEIGHT, WIDTH)
        assert batch.teacher_state[0].shape == (2, 3, 1, HEIGHT // 2, WIDTH // 2)
        assert batch.visible.shape == (2, 2, 1, HEIGHT, WIDTH)
        for i, index in enumerate(batch.index):
            assert torch.equal(batch.src[i], module.calibration_set[int(index)].src)


@pytest.mark.parametrize(("steps", "size"), [(5, 3), (1, 2), (2, 2)])
def test_steps_per_epoch_in_shuffled_passes(make, steps, size):
    module = make(batch_size=size, steps_per_epoch=steps)
    attach(module)
    indices = [batch.index.tolist() for batch in module.train_dataloader()]
    keeps = SimpleNamespace(keeps_sequences=True)
    module.trainer = SimpleNamespace(training=True, lightning_module=keeps)
    assert [batch.tolist() for batch in module.train_dataloader()] == indices
    assert [len(batch) for batch in indices] == [size] * steps
    flat = [index for batch in indices for index in batch]
    for begin in range(0, len(flat), 4):
        assert len(set(flat[begin : begin + 4])) == len(flat[begin : begin + 4])


def test_the_order_follows_seed_and_epoch(make):
    def orders(seed, epochs):
        sampler = modules[seed].train_dataloader().sampler
        return [list(sampler) for _ in range(epochs)]

    modules = {seed: make(num_sequences=8, seed=seed) for seed in (0, 1)}
    for module in modules.values():
        attach(module)
    first = orders(0, 3)
    assert first == orders(0, 3)
    assert first[0] != first[1]
    assert first != orders(1, 3)
    sampler = modules[0].train_dataloader().sampler
    sampler.set_epoch(2)
    assert list(sampler) == first[2]


def test_the_global_generator_stays(make):
    state = torch.random.get_rng_state()
    attach(make())
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("loader", ["val_dataloader", "test_dataloader", "predict_dataloader"])
def test_evaluation_comes_in_ordered_chunks(make, loader):
    module = make(eval_chunk=2)
    module.setup("test")
    chunks = list(getattr(module, loader)())
    expected = [
        (name, start) for name in ("set_a/one", "set_a/two", "set_b/one") for start in (0, 2, 4)
    ]
    assert [(chunk.name, chunk.start) for chunk in chunks] == expected
    assert [chunk.src.shape[:2] for chunk in chunks[:3]] == [(1, 2), (1, 2), (1, 1)]
    assert chunks[0].pha.shape == (1, 2, 1, HEIGHT, WIDTH)
    assert isinstance(chunks[0].start, int)
    with pytest.raises(ValueError, match="batch size of 1"):
        collate_chunk(chunks[:2])


def test_evaluation_limits(make):
    chunks = list(make(eval_clips=2, eval_frames=3).val_dataloader())
    assert [(chunk.name, chunk.src.shape[1]) for chunk in chunks] == [
        ("set_a/one", 3),
        ("set_a/two", 3),
    ]
    assert len(make(eval_clips=99, eval_frames=99).val_dataloader()) == 3


def test_builtin_evaluation_needs_the_portrait_cut_out_and_no_flow(make, tmp_path):
    module = make(source=Builtin(), evaluation=None, eval_frames=2)
    module.setup("test")
    with pytest.raises(PTQ4VMError, match="attach"):
        module.val_dataloader()
    teacher, calls = make_teacher()
    module.attach(teacher)
    chunk = next(iter(module.val_dataloader()))
    assert chunk.src.shape == (1, 2, 3, HEIGHT, WIDTH)
    assert chunk.flow.shape == (1, 1, 2, HEIGHT, WIDTH)
    with pytest.raises(PTQ4VMError, match=r"attach\(teacher, flow\)"):
        module.calibration_set  # noqa: B018
    again = make(source=Builtin(), evaluation=None)
    again.attach(teacher)
    again.val_dataloader()
    assert len(calls) == 1  # the cut-out is cached
    again.attach(make_teacher("another")[0])
    again.val_dataloader()
    assert len(files(tmp_path, "cache/cutouts/*")) == 2


@pytest.mark.parametrize("cached", [0, 2])
def test_processes_that_draw_ahead_make_the_same_set(make, tmp_path, cached):
    settings = {"source": [COMPOSITES, CUT_OUTS, VIDEOS], "num_sequences": 5}
    one, several = make(**settings), make(**settings, num_workers=2, cache_dir=tmp_path / "several")
    attach(one)
    attach(several)
    for file in files(tmp_path, "several/calibration/*/*.safetensors")[: 5 - cached]:
        file.unlink()  # simulate an interrupted run
    attach(several)
    for index in range(5):
        torch.testing.assert_close(
            several.calibration_set[index].src, one.calibration_set[index].src
        )


def test_loader_processes(make):
    module = make(source=Builtin(), evaluation=None, num_workers=1, eval_clips=1, eval_frames=2)
    attach(module)
    assert len(list(module.train_dataloader())) == 4
    assert next(iter(module.val_dataloader())).name == "builtin_test/0000"


class Probe(pl.LightningModule):
    """Module that attaches in `setup`, like the phases, and records its batches."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(1, 1), []

    def setup(self, stage):
        attach(self.trainer.datamodule)

    def training_step(self, batch, _):
        self.seen.append(batch.index.tolist())
        return self.layer(batch.src.mean().view(1, 1)).sum()

    def validation_step(self, batch, _):
        self.seen.append(batch.name)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
def test_within_a_trainer(make, tmp_path):
    module, probe = make(steps_per_epoch=2, batch_size=2, eval_clips=1), Probe()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(probe, datamodule=module)
    trained = [seen for seen in probe.seen if isinstance(seen, list)]
    assert [len(seen) for seen in trained] == [2] * 4
    assert probe.seen.count("set_a/one") == 2


def test_each_process_makes_its_share_and_the_first_the_portrait(make, monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "gather", lambda value: [value])
    made = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        module = make(num_sequences=5)
        made.append(len(attach(module)[0]))
        batches = list(module.train_dataloader())
        assert len(batches) == 3
        assert {int(index) % 2 for batch in batches for index in batch.index} == {rank}
    assert made == [3, 2]
    with pytest.raises(PTQ4VMError, match="sequence for each of 2 processes"):
        attach(make(num_sequences=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_sequences": 0}, "Expected num_sequences of at least 1, got 0"),
        ({"seq_length": -1}, "Expected seq_length of at least 1, got -1"),
        ({"height": 0}, "Expected height of at least 16, got 0"),
        ({"width": 8}, "Expected width of at least 16, got 8"),
        ({"batch_size": 0}, "batch_size"),
        ({"steps_per_epoch": 0}, "steps_per_epoch"),
        ({"eval_chunk": 0}, "eval_chunk"),
        ({"eval_clips": 0}, "eval_clips"),
        ({"eval_frames": 0}, "eval_frames"),
        ({"num_workers": -1}, "num_workers"),
        ({"seed": -1}, "seed"),
        (
            {"source": "films"},
            "Expected source to be Auto or of Builtin, Composites, .* got 'films'",
        ),
        (
            {"source": Composites("no", "bg")},
            "Expected a folder of foregrounds .* got nothing at .*no",
        ),
        ({"source": Composites("fg", "no")}, "Expected a folder of backgrounds"),
        ({"evaluation": "no"}, "Expected a folder of evaluation sets"),
        ({"source": EvaluationTree("no")}, "Expected a folder of evaluation sets"),
        ({"source": Videos("no")}, "Expected a folder of videos"),
        ({"seq_length": 7}, r"at least seq_length = 7 frames .* got at most 6, in clip train/000"),
        (
            {"source": VIDEOS, "seq_length": 9},
            r"at least seq_length = 9 frames .* got at most 8, in clip vid/a.avi",
        ),
    ],
)
def test_mistakes_in_settings_are_explained(make, settings, message):
    with pytest.raises(PTQ4VMError, match=message):
        make(**settings).setup("fit")


def test_clips_too_short_are_passed_over(make, tmp_path):
    write_foregrounds(tmp_path / "fg", clips=("0000", "0001", "long"), frames=6)
    write_foregrounds(tmp_path / "fg", clips=("a", "b", "long"), frames=8)
    module = make(seq_length=8, num_sequences=4)
    attach(module)
    assert len(module.calibration_set) == 4


def test_a_cache_that_cannot_be_written_is_explained(make, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PTQ4VMError, match="Set cache_dir or PTQ4VM_CACHE"):
        attach(make(cache_dir=tmp_path / "file"))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PTQ4VM_CACHE", str(tmp_path / "env"))
    assert VideoMattingDataModule().cache_dir == tmp_path / "env"
    monkeypatch.delenv("PTQ4VM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert VideoMattingDataModule().cache_dir == tmp_path / "xdg" / "ptq4vm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert VideoMattingDataModule().cache_dir == tmp_path / ".cache" / "ptq4vm"


def test_numbers_out_of_the_set_end_it(make):
    module = make()
    attach(module)
    with pytest.raises(IndexError):
        module.calibration_set[4]
    module = make(source=Builtin())
    module.setup("fit")
    assert isinstance(module._clips.calibration_sources[0], BuiltinSource)
