"""Datasets with sources: degradation operators, paired and unpaired folders, videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.data.degradations import Operator, downsample, sobel_edge_strength
from genlab.data.degraded_pairs import Pairs
from genlab.data.digits import Digits
from genlab.data.domain_folders import PairedFolder, UnpairedFolders
from genlab.data.fake import Fake
from genlab.data.image_folder import ImageFolder
from genlab.data.video import FramesFolder, MovingMNIST, bouncing_positions
from genlab.errors import UserError
from genlab.spec import DataSpec

OPERATORS = ("gray", "downsample", "noise", "mask", "edges")


def color_images(**options) -> Fake:
    return Fake(shape=(3, 12, 8), n=40, num_classes=3, **options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def operator(name: str, spec: DataSpec, **options) -> Operator:
    return Operator(
        name=name,
        spec=spec,
        **{"factor": 2, "sigma": 0.1, "mask": "box", "mask_ratio": 0.25, **options},
    )


def png(path: Path, x: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x.astype(np.uint8)).save(path)


# --- the operators --------------------------------------------------------------------------------


def test_gray_is_the_weighted_sum_of_the_channels():
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    made = operator("gray", DataSpec((3, 4, 5), range=(0.0, 1.0), levels=0))(x, generator())
    torch.testing.assert_close(made[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])


@pytest.mark.parametrize("factor", [2, 4])
def test_downsample_equals_pillows_bicubic(factor):
    x = torch.rand(1, 1, 16, 24)
    theirs = Image.fromarray(x[0, 0].numpy()).resize(
        (24 // factor, 16 // factor), Image.Resampling.BICUBIC
    )
    torch.testing.assert_close(
        downsample(x, factor)[0, 0], torch.from_numpy(np.array(theirs)), rtol=0, atol=1e-6
    )


def test_edges_are_the_length_of_the_sobel_gradient():
    x = torch.rand(1, 1, 5, 6, dtype=torch.float64) / 2
    made = sobel_edge_strength(x)[0, 0]
    for i, j in ((1, 1), (2, 3), (3, 4)):
        p = x[0, 0, i - 1 : i + 2, j - 1 : j + 2]
        across = (p[0, 2] + 2 * p[1, 2] + p[2, 2] - p[0, 0] - 2 * p[1, 0] - p[2, 0]) / 4
        down = (p[2, 0] + 2 * p[2, 1] + p[2, 2] - p[0, 0] - 2 * p[0, 1] - p[0, 2]) / 4
        assert made[i, j].item() == pytest.approx((across**2 + down**2).sqrt().item())
    step = torch.zeros(1, 3, 4, 6)
    step[..., 3:] = 1
    assert sobel_edge_strength(step)[0, 0, 1].tolist() == pytest.approx([0, 0, 1, 1, 0, 0])


def test_noise_has_its_standard_deviation_and_leaves_the_range():
    x = torch.full((50, 1, 20, 20), 1.0)
    made = operator("noise", DataSpec((1, 20, 20), range=(-1.0, 1.0)), sigma=0.2)(x, generator())
    assert made.mean().item() == pytest.approx(1, abs=0.02) and made.std().item() == pytest.approx(
        0.4, rel=0.02
    )
    assert made.max() > 1.5


@pytest.mark.parametrize(("mask", "mask_ratio"), [("box", 0.25), ("half", 0.5), ("random", 0.3)])
def test_masks_hide_pixels_and_mark_them(mask, mask_ratio):
    spec = DataSpec((3, 8, 12), range=(-1.0, 3.0))
    x = torch.rand(400, 3, 8, 12) * 4 - 1
    made = operator("mask", spec, mask=mask, mask_ratio=mask_ratio)(x, generator())
    hidden = made[:, 3] == 3.0
    assert made.shape == (400, 4, 8, 12) and set(made[:, 3].unique().tolist()) == {-1.0, 3.0}
    assert (made[:, :3].movedim(1, 3)[hidden] == 1.0).all(), "the middle of the range"
    assert torch.equal(made[:, :3].movedim(1, 3)[~hidden], x.movedim(1, 3)[~hidden])
    if mask == "random":
        assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.01)
    else:
        assert (hidden.flatten(1).sum(1) == 96 * mask_ratio).all()
    if mask == "box":
        for one in hidden[:20]:
            rows, columns = one.any(1).nonzero()[:, 0], one.any(0).nonzero()[:, 0]
            assert one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all() and (
                len(rows),
                len(columns),
            ) == (4, 6)
        assert hidden.any(0).all(), "a box may be anywhere"


# --- pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_sources_of_a_batch_are_the_operators_results(name, reverse):
    data = Pairs(base=color_images(), operator=name, reverse=reverse)
    batch = next(data.batches("train", 6, seed=3))
    assert batch.x.shape == (6, *data.spec.shape) and batch.cond.shape == (
        6,
        *data.spec.source.shape,
    )
    assert len(batch.y) == 6 and data.spec.num_classes == 3 and data.spec.source.num_classes == 0
    image, made = (batch.cond, batch.x) if reverse else (batch.x, batch.cond)
    plain = next(data.base.batches("train", 6, seed=3))
    assert torch.equal(image, plain.x), "the images are those of the base dataset"
    if name in ("gray", "downsample", "edges"):
        assert torch.equal(made, data.apply(image, generator()))
        levels = (made + 1) / 2 * 255
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    tasks = dict(
        zip(OPERATORS, ("colorize", "superres", "denoise", "inpaint", "photo"), strict=True)
    )
    assert data.spec.task == (name if reverse else tasks[name])


@pytest.mark.parametrize("name", ["noise", "mask"])
def test_source_noise_is_new_in_training_and_fixed_in_an_ordered_pass(name):
    data = Pairs(base=color_images(), operator=name)
    stream = data.batches("train", 8, seed=5)
    first = [next(stream) for _ in range(12)]
    again = data.batches("train", 8, seed=5, start=7)
    for batch in first[7:]:
        other = next(again)
        assert torch.equal(batch.x, other.x) and torch.equal(batch.cond, other.cond)
    assert not torch.equal(
        first[0].cond - first[0].cond.mean(), first[5].cond - first[5].cond.mean()
    )
    whole, parts = (
        torch.cat([b.cond for b in data.batches("test", size, shuffle=False)]) for size in (4, 3)
    )
    assert torch.equal(whole, parts) and len(whole) == data.size("test")
    assert torch.equal(whole[[2, 0]], data.items("test", torch.arange(4)).cond[[2, 0]]), (
        "an item's noise depends on its position"
    )


def test_patches_are_parts_of_the_images_with_their_sources():
    data = Pairs(base=color_images(), operator="downsample", crop_size=6)
    assert data.spec.shape == (3, 6, 6) and data.spec.source.shape == (3, 3, 3)
    whole, stream = data.base.head("train").x, data.batches("train", 10)
    windows = (
        whole.unfold(2, 6, 1).unfold(3, 6, 1).flatten(2, 3).transpose(1, 2).flatten(0, 1)
    )  # (40 · 7 · 3, 3, 6, 6)
    places = set()
    for batch in (next(stream), next(stream)):
        found = (batch.x[:, None] == windows).flatten(2).all(2)  # (10, windows)
        assert found.any(1).all()
        places |= {int(i) % 21 for i in found.float().argmax(1)}
        assert torch.equal(batch.cond, data.apply(batch.x, generator()))
    assert len(places) > 5, "the patches have many positions"
    middle = data.base.head("test", 3).x[..., 3:9, 1:7]
    assert torch.equal(data.head("test", 3).x, middle)
    assert torch.equal(
        data.head_as_uint8_images("test", 3).x, ((middle + 1) / 2 * 255).round().byte()
    )


def test_a_streaming_dataset_gives_the_same_pairs(tmp_path):
    noise = np.random.default_rng(0)
    for i in range(12):
        png(tmp_path / f"{i}.png", noise.integers(0, 256, (8, 8, 3)))
    held, streamed = (
        Pairs(base=ImageFolder(path=str(tmp_path), cache_in_memory=r, workers=0), operator="mask")
        for r in (True, False)
    )
    for a, b in zip(held.batches("train", 4), streamed.batches("train", 4), strict=False):
        assert torch.equal(a.x, b.x) and torch.equal(a.cond, b.cond)
        break
    assert torch.equal(held.head("train", 3).cond, streamed.head("train", 3).cond)


REFUSED = [
    (lambda: Pairs(base=Digits(), operator="gray"), "cifar10"),
    (lambda: Pairs(base=Digits(), operator="downsample", factor=3), "preprocess.size=6"),
    (lambda: Pairs(base=Digits(), crop_size=9), "8×8"),
    (lambda: MovingMNIST(base=Digits(), size=7), "dataset.size=7"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_impossible_options_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- folders --------------------------------------------------------------------------------------


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3))


def write_side_by_side(folder: Path) -> None:
    for i, a in enumerate(images(6)):
        png(folder / "train" / f"{i}.png", np.concatenate([a, 255 - a], 1))
    for i, a in enumerate(images(2, 1)):
        png(folder / "test" / f"{i}.png", np.concatenate([a, 255 - a], 1))


def write_two_folders(folder: Path, pattern: str) -> None:
    for split, whole in (("train", images(6)), ("test", images(2, 1))):
        for i, a in enumerate(whole):
            png(folder / pattern.format(split=split, domain="A") / f"{i}.png", a)
            png(folder / pattern.format(split=split, domain="B") / f"{i}.png", 255 - a)


LAYOUTS = [None, "{split}{domain}", "{domain}/{split}", "{split}/{domain}"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_pairs_are_found_in_every_layout(layout, direction, tmp_path):
    write_side_by_side(tmp_path) if layout is None else write_two_folders(tmp_path, layout)
    data = PairedFolder(path=str(tmp_path), direction=direction, range=(0.0, 255.0), validation=0.0)
    assert (data.size("train"), data.size("test")) == (
        6,
        2,
    ) and data.spec.shape == data.spec.source.shape == (3, 8, 8)
    (batch,) = data.batches("test", 8, shuffle=False)
    a = torch.from_numpy(images(2, 1)).permute(0, 3, 1, 2).float()
    source, target = (a, 255 - a) if direction == "AtoB" else (255 - a, a)
    assert torch.equal(batch.cond, source) and torch.equal(batch.x, target)
    order = data.head("test", 2)
    assert torch.equal(data.head_as_uint8_images("test", 2).x.float(), order.x)


def test_flip_and_jitter_apply_to_both_images(tmp_path):
    write_side_by_side(tmp_path)
    data = PairedFolder(path=str(tmp_path), range=(0.0, 255.0), flip=True, jitter=0.5)
    batch = next(data.batches("train", 64))
    assert batch.x.shape == (64, 3, 8, 8)
    assert ((batch.x + batch.cond) - 255).abs().max() <= 1, "bicubic keeps 255 − a, up to rounding"
    still = next(PairedFolder(path=str(tmp_path), range=(0.0, 255.0)).batches("train", 64))
    assert not torch.equal(batch.x, still.x) and len(batch.x.flatten(1).unique(dim=0)) > 30
    test = next(data.batches("test", 2, shuffle=False))
    assert torch.equal(test.cond, torch.from_numpy(images(2, 1)).permute(0, 3, 1, 2).float()), (
        "test pairs are not augmented"
    )


def test_pairs_of_a_paired_folder_use_its_targets(tmp_path):
    write_side_by_side(tmp_path)
    base = PairedFolder(path=str(tmp_path), direction="BtoA")
    data = Pairs(base=base, operator="downsample", crop_size=4)
    batch = data.head("test", 2)
    assert torch.equal(batch.x, base.head("test", 2).x[..., 2:6, 2:6]) and batch.cond.shape == (
        2,
        3,
        2,
        2,
    )


def test_incomplete_folders_are_refused(tmp_path):
    write_two_folders(tmp_path / "missing", "{split}{domain}")
    (tmp_path / "missing/trainB/3.png").unlink()
    with pytest.raises(UserError, match=r"trainA/3.png does not have a partner"):
        PairedFolder(path=str(tmp_path / "missing"), strict=True)
    png(tmp_path / "odd/1.png", np.zeros((8, 15)))
    with pytest.raises(UserError, match="width is odd"):
        PairedFolder(path=str(tmp_path / "odd"))
    with pytest.raises(UserError, match="no training images of [AB].*trainA/"):
        UnpairedFolders(path=str(tmp_path / "odd"))


@pytest.mark.parametrize("layout", ["{split}{domain}", "{domain}/{split}", "{split}/{domain}"])
def test_partners_have_the_same_path_in_their_domain(layout, tmp_path):
    for at, name in enumerate(("x/1", "y/1", "x/2.a", "y/deep/1")):
        for domain, low in (("A", 10), ("B", 110)):
            png(
                tmp_path / layout.format(split="train", domain=domain) / f"{name}.png",
                np.full((8, 8), low + at),
            )
    data = PairedFolder(path=str(tmp_path), range=(0.0, 255.0), validation=0.0, test=0.0)
    (batch,) = data.batches("train", 4, shuffle=False)
    x, cond = first_pixels(batch)
    assert sorted(cond) == [10, 11, 12, 13] and x == [value + 100 for value in cond]
    (tmp_path / layout.format(split="train", domain="B") / "y/1.png").unlink()
    with pytest.raises(UserError, match="y/1.png does not have a partner"):  # not paired with x/1
        PairedFolder(path=str(tmp_path), strict=True)
    data = PairedFolder(path=str(tmp_path), range=(0.0, 255.0), validation=0.0, test=0.0)
    assert data.size("train") == 3
    assert data.left_out.counts == {"images of A without a partner in B": 1}


@pytest.mark.parametrize("domain", ["A", "B"])
def test_duplicate_names_in_a_domain_are_refused(domain, tmp_path):
    write_two_folders(tmp_path, "{split}{domain}")
    png(tmp_path / f"train{domain}" / "3.bmp", np.zeros((8, 8)))
    with pytest.raises(UserError, match=rf"train{domain}/3\.bmp and .*train{domain}/3\.png"):
        PairedFolder(path=str(tmp_path))


def make_unpaired(folder: Path, a: int = 7, b: int = 5, **options) -> UnpairedFolders:
    for domain, n, low in (("A", a, 0), ("B", b, 100)):
        for i in range(n):
            png(folder / f"train{domain}" / f"{i}.png", np.full((4, 4), low + i))
            png(folder / f"test{domain}" / f"{i}.png", np.full((4, 4), low + 50 + i))
    return UnpairedFolders(path=str(folder), range=(0.0, 255.0), validation=0.0, **options)


def first_pixels(batch) -> tuple[list[int], list[int]]:
    return batch.x[:, 0, 0, 0].int().tolist(), batch.cond[:, 0, 0, 0].int().tolist()


def test_unpaired_domains_have_independent_epochs(tmp_path):
    data = make_unpaired(tmp_path)
    assert not data.paired and data.spec.source.shape == (1, 4, 4) and data.spec.task == "translate"
    stream = data.batches("train", 5, seed=2)
    batches = [first_pixels(next(stream)) for _ in range(14)]
    targets, sources = ([number for batch in batches for number in batch[i]] for i in (0, 1))
    for i in range(0, 70, 5):
        assert sorted(targets[i : i + 5]) == list(range(100, 105))
    for i in range(0, 70, 7):
        assert sorted(sources[i : i + 7]) == list(range(7))
    assert len({(x, z) for x, z in zip(targets, sources, strict=True)}) > 20, (
        "the domains are not paired"
    )
    again = data.batches("train", 5, seed=2, start=9)
    assert [first_pixels(next(again)) for _ in range(3)] == batches[9:12]
    back = make_unpaired(tmp_path, direction="BtoA")
    assert sorted(first_pixels(next(back.batches("train", 7)))[0]) == list(range(7))


def test_unpaired_shards_are_parts_of_the_global_batch(tmp_path):
    data = make_unpaired(tmp_path)
    whole = first_pixels(next(data.batches("train", 4, seed=1)))
    parts = [
        first_pixels(next(data.batches("train", 4, seed=1, shard=s, num_shards=2))) for s in (0, 1)
    ]
    assert whole == (parts[0][0] + parts[1][0], parts[0][1] + parts[1][1])


def test_an_ordered_pass_of_unpaired_domains(tmp_path):
    data = make_unpaired(tmp_path, a=3)
    found = [first_pixels(batch) for batch in data.batches("test", 2, shuffle=False)]
    assert [x for xs, _ in found for x in xs] == [150, 151, 152, 153, 154]
    assert [z for _, zs in found for z in zs] == [50, 51, 52, 50, 51]
    assert first_pixels(data.items("test", torch.tensor([4, 2]))) == ([154, 152], [51, 52])


# --- videos ---------------------------------------------------------------------------------------


def moving_digits(**options) -> MovingMNIST:
    return MovingMNIST(
        base=Digits(),
        **{
            "context_frames": 3,
            "target_frames": 4,
            "num_digits": 2,
            "n": 20,
            "num_heldout": 6,
            "size": 20,
            **options,
        },
    )


def test_bouncing_digits_equal_a_plain_loop():
    data = moving_digits(range=(0.0, 255.0))
    assert (
        data.spec.shape == (4, 1, 20, 20)
        and data.spec.source.shape == (3, 1, 20, 20)
        and data.spec.kind == "video"
    )
    raw, batch = data.splits["test"].x, next(data.batches("test", 6, shuffle=False))
    video = torch.cat([batch.cond, batch.x], 1)[:, :, 0]  # (6, 7, 20, 20)
    for i in range(6):
        canvas = torch.zeros(7, 20, 20)
        for which, y, x, dy, dx in raw[i].tolist():
            ink = data.store[int(which), 0].float()
            for t in range(7):
                y, x = y + dy, x + dx
                dy, dx = (-v if not 0 < at < 1 else v for v, at in ((dy, y), (dx, x)))
                y, x = min(max(y, 0), 1), min(max(x, 0), 1)
                top, left = int(np.float32(y) * 12), int(np.float32(x) * 12)
                canvas[t, top : top + 8, left : left + 8] = torch.maximum(
                    canvas[t, top : top + 8, left : left + 8], ink
                )
        assert (canvas - video[i]).abs().flatten(1).amax(1).eq(0).sum() >= 6, (
            "except where a position is on a pixel's edge"
        )
    assert int(raw[..., 0].min()) >= data.base.size("train"), "test videos have test digits"
    assert video.flatten(2).amax(2).min() == 255


def test_points_bounce_within_the_square_at_constant_speed():
    start, velocity = (
        torch.rand(50, 2, dtype=torch.float64),
        torch.randn(50, 2, dtype=torch.float64) / 10,
    )
    places = bouncing_positions(start, velocity, 200)
    assert places.shape == (50, 200, 2) and places.min() >= 0 and places.max() <= 1
    inside = (places[:, 1:] > 0) & (places[:, 1:] < 1) & (places[:, :-1] > 0) & (places[:, :-1] < 1)
    torch.testing.assert_close(
        places.diff(dim=1).abs()[inside], velocity.abs()[:, None].expand(-1, 199, -1)[inside]
    )


def test_videos_are_reproducible_and_can_be_longer():
    data, other = moving_digits(), moving_digits()
    test = data.head("test")
    assert torch.equal(test.x, other.head("test").x) and not torch.equal(
        test.x, data.head("validation").x
    )
    longer = data.with_target_frames(9)
    assert longer.spec.shape == (9, 1, 20, 20) and data.spec.shape == (4, 1, 20, 20)
    assert torch.equal(longer.head("test").x[:, :4], test.x) and torch.equal(
        longer.head("test").cond, test.cond
    )
    a, b = next(data.batches("train", 4, start=3)), next(other.batches("train", 4, start=3))
    assert torch.equal(a.x, b.x) and torch.equal(a.cond, b.cond)


def test_frames_are_sorted_by_number_and_in_one_split(tmp_path):
    for name, n in (("b", 30), ("a", 12)):
        for i in range(n):
            png(
                tmp_path / name / f"frame_{i}.png", np.full((4, 4), i + (100 if name == "b" else 0))
            )
    data = FramesFolder(
        path=str(tmp_path),
        context_frames=2,
        target_frames=1,
        range=(0.0, 255.0),
        validation=0.1,
        test=0.2,
    )
    seen = {}
    for split in ("train", "validation", "test"):
        if data.size(split):
            (batch,) = data.batches(split, 100, shuffle=False)
            video = torch.cat([batch.cond, batch.x], 1)[:, :, 0, 0, 0]  # (N, 3)
            assert (video.diff(dim=1) == 1).all(), (
                "frame 10 comes after frame 9, and no window leaves its video"
            )
            seen[split] = set(video.flatten().int().tolist())
    assert seen["train"] == {*range(9), *range(100, 121)} and seen["test"] == {*range(124, 130)}
    assert seen["validation"] == {121, 122, 123}
    assert data.size("train") == 7 + 19
    longer = data.with_target_frames(3)
    assert longer.size("train") == 5 + 17 and longer.spec.shape == (3, 1, 4, 4)
    flipped = FramesFolder(path=str(tmp_path), context_frames=2, target_frames=1, flip=True)
    assert next(flipped.batches("train", 4)).x.shape == (4, 1, 1, 4, 4)
    with pytest.raises(UserError, match="no video of .* has 41 frames"):
        data.with_target_frames(39)


# --- patches of images at their own sizes ---------------------------------------------------------


def write_mixed_sizes(folder: Path) -> None:
    noise = np.random.default_rng(0)
    for i, (height, width) in enumerate([(9, 12), (14, 8), (8, 8), (20, 11), (10, 10)] * 2):
        png(folder / f"{i}.png", noise.integers(0, 256, (height, width, 3)))


def own_sizes(folder: Path, **options) -> Pairs:
    base = ImageFolder(path=str(folder), patch_size=6, workers=0, test=0.2, **options)
    return Pairs(base=base, operator="downsample", crop_size=6)


def test_patches_at_own_sizes_are_parts_of_the_images(tmp_path):
    write_mixed_sizes(tmp_path)
    data = own_sizes(tmp_path, range=(0.0, 255.0))
    assert data.spec.shape == (3, 6, 6) and data.spec.source.shape == (3, 3, 3)
    whole = [np.array(Image.open(tmp_path / f"{i}.png")).transpose(2, 0, 1) for i in range(10)]
    windows = torch.cat(
        [
            torch.from_numpy(x).unfold(1, 6, 1).unfold(2, 6, 1).flatten(1, 2).transpose(0, 1)
            for x in whole
        ]
    ).float()
    stream = data.batches("train", 8, seed=1)
    batches = [next(stream) for _ in range(4)]
    found = [(batch.x[:, None] == windows).flatten(2).all(2) for batch in batches]
    assert all(rows.any(1).all() for rows in found)
    assert len({int(i) for rows in found for i in rows.float().argmax(1)}) > 20
    again = next(data.batches("train", 8, seed=1, start=3))
    assert torch.equal(again.x, batches[3].x) and torch.equal(again.cond, batches[3].cond)
    heights = {8: 1, 9: 1, 10: 2, 14: 4, 20: 7}  # first row of the middle patch
    test = data.head("test")
    for x in test.x:
        middles = [w[:, heights[w.shape[1]] :, (w.shape[2] - 6) // 2 :][:, :6, :6] for w in whole]
        assert any(np.array_equal(x, middle) for middle in middles)
    assert torch.equal(data.head_as_uint8_images("test").x.float(), test.x)
    assert torch.equal(
        data.base.raw_items_and_labels("test")[0].float(), data.base.head("test").x[[0, 1]]
    ) or (
        torch.equal(
            data.base.raw_items_and_labels("test")[0].float(), data.base.head("test").x[[1, 0]]
        )
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_patches_equal_those_in_memory(workers, tmp_path):
    write_mixed_sizes(tmp_path)
    held, streamed = (
        own_sizes(tmp_path, cache_in_memory=memory, flip=True) for memory in (True, False)
    )
    streamed.workers = workers
    for a, b, _ in zip(
        held.batches("train", 4), streamed.batches("train", 4), range(3), strict=False
    ):
        assert torch.equal(a.x, b.x) and torch.equal(a.cond, b.cond)
    assert torch.equal(held.head("test").x, streamed.head("test").x)


def test_patches_of_equal_images_are_those_that_pairs_cuts(tmp_path):
    """A base that cuts the patches itself gives the numbers of runs whose base did not."""
    for i, x in enumerate(images(10)):
        png(tmp_path / f"{i}.png", x)
    bases = [ImageFolder(path=str(tmp_path), flip=True, patch_size=size) for size in (None, 6)]
    old, new = (Pairs(base=base, operator="noise", crop_size=6) for base in bases)
    for a, b, _ in zip(old.batches("train", 4), new.batches("train", 4), range(2), strict=False):
        assert torch.equal(a.x, b.x) and torch.equal(a.cond, b.cond)
    assert torch.equal(old.head("test").x, new.head("test").x)
    assert torch.equal(old.head_as_uint8_images("test").x, new.head_as_uint8_images("test").x)


# --- what is left out of folders of pairs ---------------------------------------------------------


def test_images_without_partner_are_counted(tmp_path):
    write_two_folders(tmp_path, "{split}_{domain}")
    (tmp_path / "train_A" / "3.png").unlink()
    (tmp_path / "train_B" / "5.png").unlink()
    (tmp_path / "test_B" / "1.png").unlink()
    png(tmp_path / "cover.png", np.zeros((8, 8)))
    (tmp_path / "train_A" / "notes.txt").write_text("x")
    data = PairedFolder(path=str(tmp_path), validation=0.0)
    assert (data.size("train"), data.size("test")) == (4, 1)
    assert data.left_out.to_json() == {
        "unsupported suffix .txt": {"count": 1, "examples": ["train_A/notes.txt"]},
        "images of A without a partner in B": {
            "count": 2,
            "examples": ["train_A/5.png", "test_A/1.png"],
        },
        "images of B without a partner in A": {"count": 1, "examples": ["train_B/3.png"]},
        "not in a folder of A or B": {"count": 1, "examples": ["cover.png"]},
    }


@pytest.mark.parametrize(
    "layout", ["Train{domain}", "training/{domain}", "{domain}/TRAIN", "{domain}"]
)
def test_names_of_domains_are_matched_in_any_case(layout, tmp_path):
    for domain, low in (("A", 0), ("b", 100)):
        for i in range(3):
            png(tmp_path / layout.format(domain=domain) / f"{i}.png", np.full((8, 8), low + i))
    for dataset in (PairedFolder, UnpairedFolders):
        data = dataset(path=str(tmp_path), validation=0.0, test=0.0, range=(0.0, 255.0))
        assert data.size("train") == 3 and data.head("train").x.min() == 100


def test_names_that_end_in_the_domain_are_pairs(tmp_path):
    for domain, low in (("A", 0), ("B", 100)):
        for i in range(3):
            png(tmp_path / f"train{domain}" / f"{i}_{domain}.png", np.full((8, 8), low + i))
    data = PairedFolder(path=str(tmp_path), validation=0.0, test=0.0, range=(0.0, 255.0))
    x, cond = first_pixels(data.head("train"))
    assert sorted(x) == [100, 101, 102] and [value - 100 for value in x] == cond


@pytest.mark.parametrize(
    ("a", "b", "options", "words"),
    [
        ((8, 8), (16, 8), {"size": 8, "crop": "center"}, "need the same shape"),
        ((8, 8), (16, 8), {"size": 8, "crop": "stretch"}, "differ in size"),
        ((8, 8), (16, 16), {"size": 8}, "the images of 3 pairs differ in size; both are resized"),
        ((8, 8), (16, 16), {}, "2 different sizes"),
        ((8, 8), (8, 8), {}, ""),
    ],
)
def test_two_sizes_in_a_pair(a, b, options, words, tmp_path):
    for domain, shape in (("A", a), ("B", b)):
        for i in range(3):
            png(tmp_path / f"train{domain}" / f"{i}.png", np.zeros(shape))
    try:
        said = PairedFolder(path=str(tmp_path), **options).notes
    except UserError as error:
        said = [str(error)]
    assert any(words in line for line in said) if words else said == []


def test_dark_images_of_a_domain_are_noted(tmp_path):
    """Masks with the numbers of classes would be black."""
    for i in range(3):
        png(tmp_path / "A" / f"{i}.png", np.arange(64).reshape(8, 8) % 20)
        png(tmp_path / "B" / f"{i}.png", np.arange(64).reshape(8, 8) * 4)
    (note,) = PairedFolder(path=str(tmp_path), validation=0.0, test=0.0).notes
    assert note.startswith("the images of A are nearly black: no value is above 19 of 255")


def test_two_folders_of_the_same_names_are_noted(tmp_path):
    """As train_label and train_img of pix2pixHD: wide images could be halved."""
    for name in ("train_img", "train_label"):
        for i in range(3):
            png(tmp_path / name / f"{i}.png", np.zeros((4, 8), np.uint8))
    data = PairedFolder(path=str(tmp_path), validation=0.0, test=0.0)
    assert "train_img/ and train_label/ have the same names" in "\n".join(data.notes)
    write_side_by_side(tmp_path / "halves")
    assert not any(
        "same names" in note for note in PairedFolder(path=str(tmp_path / "halves")).notes
    )


def test_single_images_are_not_halved_in_silence(tmp_path):
    for i in range(3):
        png(tmp_path / f"{i}.png", np.zeros((48, 64, 3)))
    with pytest.raises(
        UserError, match=r"halves of 32×48 are not square.*set dataset=image_folder"
    ):
        PairedFolder(path=str(tmp_path))


# --- which frames are a film ----------------------------------------------------------------------


def write_frames(folder: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        png(folder / name, np.full((4, 4), i))
    return folder


def films(folder: Path, **options) -> FramesFolder:
    counts = {"context_frames": 2, "target_frames": 1, "validation": 0.0, "test": 0.0}
    return FramesFolder(path=str(folder), range=(0.0, 255.0), **counts | options)


@pytest.mark.parametrize(
    ("names", "sizes", "note"),
    [
        (
            [f"obj{k}__{5 * i}.png" for k in (1, 2, 10) for i in range(12)],
            [12, 12, 12],
            "3 videos (obj1__*, obj2__*, obj10__*)",
        ),
        ([f"{i}_{s}.png" for s in ("left", "right") for i in range(11)], [11, 11], "(*_left, "),
        ([f"frame_{i}.png" for i in range(12)], [12], "1 video of 12 frames"),
        ([f"f{i}_{33 * i}ms.png" for i in range(12)], [12], "1 video of 12 frames"),
        ([f"{k}/{i}.png" for k in "ab" for i in range(11)], [11, 11], "2 videos of 22 frames"),
        ([f"{i}.png" for i in range(20) if i not in (7, 8, 15)], [17], "2 gaps in the numbers"),
        ([f"{i}.png" for i in range(11)] + ["cover.png"], [11], "2 videos"),
    ],
)
def test_films_of_a_folder_are_told_by_its_names(names, sizes, note, tmp_path):
    data = films(write_frames(tmp_path, names))
    assert any(note in line for line in data.notes), data.notes
    assert data.size("train") == sum(n - 2 for n in sizes)
    (batch,) = data.batches("train", 100, shuffle=False)
    video = torch.cat([batch.cond, batch.x], 1)[:, :, 0, 0, 0]
    assert (video.diff(dim=1) == 1).all(), "no window leaves its film, and 10 comes after 9"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat.png", "dog.png", "x1.png"], "a separate folder, or number them"),
        (["f1.png", "f01.png", "f2.png"], "are the same frame"),
        ([f"{i}_cam{c}.png" for i in range(9) for c in (1, 2)], "say 9 videos (0_cam*, 1_cam*"),
    ],
)
def test_names_that_do_not_tell_the_films_are_refused(names, words, tmp_path):
    with pytest.raises(UserError) as error:
        films(write_frames(tmp_path, names))
    assert words in str(error.value)


def test_short_films_and_other_files_are_counted(tmp_path):
    write_frames(tmp_path, [f"long/{i}.png" for i in range(20)] + ["short/1.png", "short/2.png"])
    png(tmp_path / "long" / "clip.gif", np.zeros((4, 4)))
    (tmp_path / "clip.mp4").write_bytes(b"film")
    data = films(tmp_path)
    assert data.left_out.to_json() == {
        "unsupported suffix .mp4": {"count": 1, "examples": ["clip.mp4"]},
        "GIF files, which are videos and not frames": {"count": 1, "examples": ["long/clip.gif"]},
        "videos with less than 3 frames": {"count": 1, "examples": ["short (2)"]},
    }
    assert data.facts["videos"] == 2
    assert data.with_target_frames(2).left_out.counts == data.left_out.counts


def test_an_old_run_reads_a_flat_folder_as_one_film(tmp_path):
    names = [f"obj{k}__{i}.png" for k in (1, 2) for i in range(6)]
    assert films(write_frames(tmp_path, names), folder_rules=1).size("train") == 10
