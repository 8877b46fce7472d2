"""Generate small files in the formats of the public data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from dlen.data.sources.public_table import SPECS

ROWS = 600
Rng = np.random.Generator


def flags(rng: Rng, rate: float = 0.3, rows: int = ROWS) -> Any:
    """A column of 0 and 1."""
    return (rng.random(rows) < rate).astype(int)


def kuairand(folder: Path) -> None:
    """Two logs, user features and video features. One video has no features, and tags are quoted lists."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("log_standard_4_08_to_4_21_1k", "log_standard_4_22_to_5_08_1k")):
        n = ROWS // 2
        log = {
            "user_id": rng.integers(20, size=n),
            "video_id": rng.integers(15, size=n),
            "date": 20220408,
            "hourmin": 400,
        }
        log |= {"time_ms": 1649347200000 + number * 1209600000 + rng.integers(1209600000, size=n)}
        signals = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
        log |= {signal: flags(rng, rows=n) for signal in signals}
        log |= {"play_time_ms": 5, "duration_ms": rng.integers(5000, 90000, n), "profile_stay_time": 0}
        log |= {"comment_stay_time": 0, "is_profile_enter": 0, "is_rand": 0, "tab": rng.integers(3, size=n)}
        pl.DataFrame(log).write_csv(folder / f"{name}.csv")
    user: dict[str, Any] = {"user_id": np.arange(20), "user_active_degree": ["full_active", "UNKNOWN"] * 10}
    user |= {k: [0, 1] * 10 for k in ("is_lowactive_period", "is_live_streamer", "is_video_author")}
    for name in ("follow_user_num", "fans_user_num", "friend_user_num", "register_days"):
        user |= {name: np.arange(20), f"{name}_range": ["(0,10]", "500+"] * 10}
    user |= {f"onehot_feat{i}": np.arange(20) % 5 for i in range(18)}
    pl.DataFrame(user).write_csv(folder / "user_features_1k.csv")
    video: dict[str, Any] = {"video_id": np.arange(14), "author_id": np.arange(14) % 3, "video_type": "NORMAL"}
    video |= {"upload_dt": "2020-07-08", "upload_type": "ShortImport", "visible_status": 1, "video_duration": 17200.0}
    video |= {"server_width": 720, "server_height": 1280, "music_id": np.arange(14) % 4, "music_type": 4}
    pl.DataFrame(video | {"tag": ["12,65", "7"] * 7}).write_csv(folder / "video_features_basic_1k.csv")


def tenrec(folder: Path) -> None:
    """One table, and the other one that data.files can select."""
    rng = np.random.default_rng(1)
    columns = {"user_id": rng.integers(60, size=ROWS), "item_id": rng.integers(20, size=ROWS)}
    columns |= {signal: flags(rng) for signal in ("click", "follow", "like", "share")}
    columns |= {"video_category": rng.integers(4, size=ROWS), "watching_times": rng.integers(9, size=ROWS)}
    frame = pl.DataFrame(columns | {"gender": rng.integers(3, size=ROWS), "age": rng.integers(8, size=ROWS)})
    frame.write_csv(folder / "QK-video.csv")
    frame[:400].write_csv(folder / "QB-video.csv")


def tenrec_article(folder: Path) -> None:
    """Signals, counts and scores of articles; some have no score."""
    rng = np.random.default_rng(5)
    columns: dict[str, Any] = {"user_id": rng.integers(60, size=ROWS), "item_id": rng.integers(20, size=ROWS)}
    columns |= {signal: flags(rng) for signal in ("click", "like", "share", "follow", "read", "favorite")}
    for name in ("click_count", "like_count", "comment_count", "exposure_count", "read_time"):
        columns[name] = rng.integers(9, size=ROWS)
    columns |= {"read_percentage": rng.integers(100, size=ROWS), "category_second": rng.integers(9, size=ROWS)}
    columns |= {"category_first": columns["category_second"] // 3}
    columns |= {f"item_score{i}": [0.5, None, 3.0] * (ROWS // 3) for i in (1, 2, 3)}
    pl.DataFrame(columns).write_csv(folder / "QK-article.csv")


def wechat(folder: Path) -> None:
    """Actions of 14 days, and feeds with lists of tags, some with probabilities, some empty."""
    rng = np.random.default_rng(2)
    columns = {"userid": rng.integers(30, size=ROWS), "feedid": rng.integers(12, size=ROWS)}
    columns |= {"date_": rng.integers(1, 15, ROWS), "device": rng.integers(1, 3, ROWS)}
    signals = ("read_comment", "comment", "like", "click_avatar", "forward", "follow", "favorite")
    columns |= {signal: flags(rng) for signal in signals}
    pl.DataFrame(columns | {"play": 10, "stay": 12}).write_csv(folder / "user_action.csv")
    feed: dict[str, Any] = {"feedid": np.arange(12), "authorid": np.arange(12) % 4, "videoplayseconds": np.arange(12)}
    feed |= {"description": "a b", "ocr": "c", "asr": "d", "bgm_song_id": [None, 3.0] * 6, "bgm_singer_id": [1.0] * 12}
    feed |= {"manual_keyword_list": ["5;6", None] * 6, "machine_keyword_list": "5;6", "manual_tag_list": ["1;2;3"] * 12}
    pl.DataFrame(feed | {"machine_tag_list": ["9 0.8;4 0.2", None] * 6}).write_csv(folder / "feed_info.csv")


def aliexpress(folder: Path) -> None:
    """A pair of files with 16 categories, 63 numbers and a funnel."""
    rng = np.random.default_rng(3)
    for name, rows in (("train", ROWS), ("test", ROWS // 2)):
        click = flags(rng, 0.4, rows)
        columns: dict[str, Any] = {"search_id": rng.integers(200, size=rows)}
        columns |= {f"categorical_{i}": rng.integers(5, size=rows) for i in range(1, 17)}
        columns |= {f"numerical_{i}": rng.normal(size=rows) for i in range(1, 64)}
        pl.DataFrame(columns | {"click": click, "conversion": click * flags(rng, 0.4, rows)}).write_csv(
            folder / f"{name}.csv"
        )


def census(folder: Path) -> None:
    """No header, a comma and a space between values, labels that end in a full stop."""
    rng = np.random.default_rng(4)
    columns = yaml.safe_load((SPECS / "census.yaml").read_text())["columns"]
    for name, rows in (("data", ROWS), ("test", ROWS // 2)):
        cells = {c: rng.integers(7, size=rows).astype(str) for c in columns}
        cells["marital_stat"] = np.where(flags(rng, rows=rows) == 1, "Never married", "Widowed")
        cells["income_50k"] = np.where(flags(rng, rows=rows) == 1, "50000+.", "- 50000.")
        lines = [", ".join(row) for row in zip(*cells.values(), strict=True)]
        (folder / f"census-income.{name}").write_text("\n".join(lines) + "\n")


WRITERS: dict[str, Callable[[Path], None]] = {
    "kuairand": kuairand,
    "tenrec": tenrec,
    "tenrec_article": tenrec_article,
    "wechat": wechat,
    "aliexpress": aliexpress,
    "census": census,
}
