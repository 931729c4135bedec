"""Parquet files of the whole-program tests: tests/fixtures/parquet/.

Both hold the eight rows that tests/program/support.rs writes as JSONL, as the two forms in which data sets are published:
  text.parquet   strings, snappy, row groups of three; `hint` is null in row 5
  chat.parquet   lists of messages, zstd, dictionary pages, one row group; an all-null column and numbers besides

usage: make_parquet_fixtures.py        needs: pyarrow
"""
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "parquet"
NUMBERS = range(1, 9)
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def prompt(n):
    return f"Why is number {n} blue?"


def completion(n):
    return f"Because the sea is {n}."


def text():
    return pa.table({
        "prompt": [prompt(n) for n in NUMBERS],
        "completion": [completion(n) for n in NUMBERS],
        "hint": [None if n == 5 else f"Answer number {n}." for n in NUMBERS],
    })


def chat():
    turns = [[("user", prompt(n)), ("assistant", completion(n))] for n in NUMBERS]
    messages = [[{"role": role, "content": content} for role, content in turn] for turn in turns]
    return pa.table({
        "messages": pa.array(messages, MESSAGES),
        "nothing": pa.nulls(len(messages)),
        "score": pa.array([n / 4 for n in NUMBERS], pa.float32()),
        "tags": pa.array([["a"] * (n % 3) for n in NUMBERS], pa.list_(pa.string())),
    })


def main():
    OUT.mkdir(exist_ok=True)
    pq.write_table(text(), OUT / "text.parquet", compression="snappy", row_group_size=3)
    pq.write_table(chat(), OUT / "chat.parquet", compression="zstd")
    print({file.name: file.stat().st_size for file in sorted(OUT.iterdir())})


if __name__ == "__main__":
    main()
