"""What is read off frames of games, against the console's memory; and the emulator beside itself."""

import numpy as np
import pytest

from vdit.errors import ConfigError, ShapeError
from vdit.eval.evaluate import Case, evaluate, metrics_of
from vdit.eval.games import Event, Play, game_of, match_events, read_play

METRICS = ["psnr", "game_things", "game_events"]
PIXEL = 1 / 64


def drawn(ball=None, *, left=80, right=80, size=(64, 64)):
    """A frame of Pong as the console draws it, scaled down by area. Places are in its pixels; x, y of corners."""
    from PIL import Image

    screen = np.full((160, 160, 3), (144, 72, 17), np.uint8)
    screen[left : left + 16, 16:20] = (213, 130, 74)
    screen[right : right + 16, 140:144] = (92, 186, 92)
    if ball is not None:
        screen[ball[1] : ball[1] + 4, ball[0] : ball[0] + 2] = 236
    return np.asarray(Image.fromarray(screen).resize(size[::-1], Image.Resampling.BOX))


def path(points, **more):
    return np.stack([drawn(point, **more) for point in points])


def bouncing(t, *, start=(60, 20), speed=(5, 7)):
    """A ball between the paddles and the walls."""
    x, y, found = *start, []
    (vx, vy) = speed
    for _ in range(t):
        found.append((x, y))
        vx = -vx if not 24 <= x + vx <= 134 else vx
        vy = -vy if not 0 <= y + vy <= 156 else vy
        x, y = x + vx, y + vy
    return found


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_things_are_where_they_were_drawn(size):
    points = bouncing(40)
    things = read_play("Pong", path(points, left=31, right=97, size=size)).things
    unit = np.array([size[1], size[0]]) / 160 / min(size)
    np.testing.assert_allclose(things["ball"], (np.array(points) + (1, 2)) * unit, atol=0.3 * PIXEL)
    np.testing.assert_allclose(things["left_paddle"], np.tile((18, 39) * unit, (40, 1)), atol=0.2 * PIXEL)
    np.testing.assert_allclose(things["right_paddle"], np.tile((142, 105) * unit, (40, 1)), atol=0.2 * PIXEL)


def test_bounces_and_scores_are_seen():
    points = bouncing(80)
    events = read_play("Pong", path(points)).events
    wanted = []
    for axis, kind, names in ((0, "paddle", ("left", "right")), (1, "wall", ("top", "bottom"))):
        steps = np.sign(np.diff([point[axis] for point in points]))
        for turn in np.flatnonzero(steps[1:] != steps[:-1]):
            wanted.append(Event(kind, int(turn) + 2, names[int(steps[turn] > 0)]))
    assert len(wanted) > 3
    assert sorted(events) == sorted(wanted)
    leaving = [(100 + 12 * i, 40) for i in range(5)] + [None] * 8 + [(80, 80 + 4 * i) for i in range(4)]
    assert read_play("Pong", path(leaving)).events == (Event("score", 5, "left"),)


def test_events_match_within_frames_and_on_the_same_side():
    play = lambda *events: Play(things={}, events=tuple(Event(*event) for event in events))  # noqa: E731
    true = play(("wall", 3, "top"), ("wall", 20, "top"), ("paddle", 30, "left"))
    made = play(("wall", 22, "top"), ("wall", 23, "top"), ("paddle", 30, "right"))
    assert match_events(made, true, None, first=8, within=2) == (1, 3, 2)
    assert match_events(made, true, "wall", first=0, within=2) == (1, 2, 2)
    assert match_events(made, true, "wall", first=0, within=1) == (0, 2, 2)


def test_what_cannot_be_read():
    with pytest.raises(ConfigError, match="Chess"):
        read_play("Chess", path([None]))
    with pytest.raises(ShapeError):
        read_play("Pong", path([None]).astype(np.float32))
    assert [game_of(env) for env in ("ALE/Pong-v5", "ALE/Breakout-v5", "HalfCheetah-v5", "own")] == [
        "Pong", "Breakout", "HalfCheetah", "own"]  # fmt: skip


def figures(name, replays, make):
    from vdit.generate.emulation import emulated_videos

    metrics = metrics_of(METRICS, ["scene", "truth"])
    found = evaluate(emulated_videos(name, replays, make), metrics)
    return {figure.name: figure.interval.value for figure in found.figures}, found


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Folders of 4 episodes of Pong and of Breakout."""
    pytest.importorskip("gymnasium", reason="needs the extra gym")
    pytest.importorskip("ale_py", reason="needs the extra gym")
    from vdit.emulators import Recording, record

    found = {}
    for game, policies in (("Pong", ("follow", "random")), ("Breakout", ("random",))):
        found[game] = tmp_path_factory.mktemp("games") / game
        env, skip = f"ALE/{game}-v5", 60 if game == "Pong" else 0
        record(Recording(env=env, episodes=4, frames=100, skip=skip, policies=policies, seed=3), found[game])
    return found


def test_pong_is_read_as_its_memory_has_it(recorded):
    from vdit.data.episodes import EpisodesDataset

    dataset, scores, bounces = EpisodesDataset(recorded["Pong"]), 0, 0
    for number in range(4):
        episode = dataset.open(number)
        play, memory = read_play("Pong", episode.video), episode.facts
        ball = play.things["ball"] * 160
        seen = memory[:, 54] > 48
        assert np.isfinite(ball[seen]).all()
        assert np.isnan(ball[memory[:, 54] == 0]).all()
        np.testing.assert_allclose(ball[seen, 0], memory[seen, 49] - 48.25, atol=0.75)
        np.testing.assert_allclose(ball[seen, 1], memory[seen, 54] - 46.25, atol=2.5)
        for name, place, offset in (("left_paddle", 50, -41.25), ("right_paddle", 51, -40)):
            whole = (memory[:, place] > 50) & (memory[:, place] < 185)
            error = play.things[name][whole, 1] * 160 - memory[whole, place] - offset
            assert np.abs(error).max() < 2
        won = {frame: reward for frame, reward in enumerate(episode.rewards[:-10]) if reward}
        said = {event.frame: event.which for event in play.events if event.kind == "score"}
        assert len(won) <= len(said) <= np.count_nonzero(episode.rewards)
        for frame, reward in won.items():
            near = [which for at, which in said.items() if abs(at - frame) <= 2]
            assert near == ["right" if reward > 0 else "left"]
        scores += len(won)
        steps = np.diff(memory[:, 49])
        turns = np.flatnonzero((memory[2:, 54] > 0) & (memory[:-2, 54] > 0) & (steps[1:] * steps[:-1] < 0)) + 2
        found = [event.frame for event in play.events if event.kind == "paddle"]
        for turn in turns:
            assert any(abs(turn - frame) <= 1 for frame in found)
        bounces += len(turns)
    assert scores >= 3
    assert bounces >= 2


def test_bricks_go_when_points_are_made(recorded):
    from vdit.data.episodes import EpisodesDataset

    bricks = 0
    for number in range(4):
        episode = EpisodesDataset(recorded["Breakout"]).open(number)
        play = read_play("Breakout", episode.video)
        gone = [event.frame for event in play.events if event.kind == "brick"]
        assert gone == list(np.flatnonzero(episode.rewards))
        bricks += len(gone)
        ball, paddle, memory = play.things["ball"] * (160, 164), play.things["paddle"] * 160, episode.facts
        seen = np.isfinite(ball[:, 0]) & (memory[:, 101] > 100) & (memory[:, 101] < 170)
        assert np.median(np.abs(ball[seen, 0] - memory[seen, 99] + 48.25)) < 0.5
        assert np.isfinite(paddle).all()
    assert bricks


@pytest.mark.parametrize("game", ["Pong", "Breakout"])
def test_the_emulator_beside_itself_is_without_fault(recorded, game):
    from vdit.emulators import replays
    from vdit.generate.emulation import repeated_videos

    chosen = list(replays(recorded[game], count=12, given=4, horizon=40))
    assert len({replay.name for replay in chosen}) == 12
    itself, _ = figures("itself", chosen, lambda replay: replay.after.copy())
    assert itself["psnr"] == 100
    for name, value in itself.items():
        if name.endswith("_error"):
            assert value == 0, name
        if name.endswith(("_in_place", "_precision", "_recall")):
            assert value == 1, name
    assert "event_recall" in itself
    late, _ = figures("late", chosen, lambda replay: np.concatenate([replay.before[-1:], replay.after[:-1]]))
    later, _ = figures(
        "later", chosen, lambda replay: np.concatenate([replay.before[-1:].repeat(5, 0), replay.after[:-5]])
    )  # fmt: skip
    assert late["event_recall"] > 0.9
    assert 0 < late["ball_error"] < later["ball_error"]
    assert later["event_recall"] < 0.5
    still, found = figures("still", chosen, lambda replay: replay.before[-1:].repeat(40, 0))
    assert still["event_recall"] == 0
    assert still["psnr"] < late["psnr"] < 100
    own = evaluate(repeated_videos(chosen), metrics_of(METRICS, ["scene", "truth"]))
    assert [repr(figure.interval) for figure in own.figures] == [repr(figure.interval) for figure in found.figures]


def test_frames_before_do_not_count():
    video = path(bouncing(40))
    scene = {"world": "Pong"}
    whole = Case(name="a", video=video, truth=video, fps=15, scene=scene, given=0)
    last = read_play("Pong", video).events[-1].frame
    part = Case(name="a", video=video, truth=video, fps=15, scene=scene, given=last + 1)
    metric = metrics_of(["game_events"], ["scene", "truth"])[0]
    assert metric.measure(whole)["event_recall"] == 1
    assert np.isnan(metric.measure(part)["event_recall"])
