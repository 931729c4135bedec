//! `--data hf:` against a hub of this test's own: rows in the columns of the data sets that lm-evaluation-harness takes become
//! the requests that the library makes of them (`scripts/fixtures/make_hub.py`).

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};

use super::samples;
use crate::support::{ARLE, Ended, command, finish, fixture, fixtures, read_json};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const LISTING: (&str, &str) = ("/api/datasets/", "/revision/refs%2Fconvert%2Fparquet");

/// Files below a folder, as paths within it.
fn files_in(folder: &Path, within: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder.join(within)) else { return Vec::new() };
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
    let below = |name: String| if within.is_empty() { name } else { format!("{within}/{name}") };
    names.map(below).flat_map(|at| if folder.join(&at).is_dir() { files_in(folder, &at) } else { vec![at] }).collect()
}

/// Answers one request: the listing of a data set's Parquet branch, or a file of it, of which a first byte may be asked.
fn answer(mut stream: TcpStream, root: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let listed = path.strip_prefix(LISTING.0).and_then(|rest| rest.strip_suffix(LISTING.1));
    if let Some(repo) = listed.filter(|repo| root.join(repo).is_dir()) {
        let files = files_in(&root.join(repo), "");
        let siblings: Vec<Value> = files.into_iter().map(|name| json!({"rfilename": name})).collect();
        let body = json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    }
    let file = path.strip_prefix("/datasets/").and_then(|rest| rest.split_once(&format!("/resolve/{COMMIT}/")));
    let Some(content) = file.and_then(|(repo, name)| fs::read(root.join(repo).join(name)).ok()) else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    let probe = headers.iter().any(|header| header.eq_ignore_ascii_case("range: bytes=0-0"));
    let body = if probe { &content[..1] } else { &content[..] };
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes 0-{}/{}\r\netag: \"{tag}\"\r\n\
         x-repo-commit: {COMMIT}\r\nconnection: close\r\n\r\n",
        body.len(),
        body.len() - 1,
        content.len(),
        tag = path.replace(['/', '%'], "-"),
    )?;
    stream.write_all(body)
}

/// Address of a hub that has the data sets below a folder.
fn serve(root: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client that hangs up early is no failure of the hub.
            let _ = answer(stream, &root);
        }
    });
    address
}

/// `arle eval --data hf:` with a cache and a hub.
fn eval(hub: &str, cache: &Path, more: &[&str]) -> Ended {
    let model = fixture("tiny-chat");
    let args =
        ["eval", "--model", &model, "--device", "cpu", "--data", "hf:", "--num-fewshot", "0", "--max-gen-toks", "4"];
    let mut command = command(ARLE, &[&args, more].concat());
    command.env("HF_HOME", cache).env("HF_ENDPOINT", hub);
    for proxy in ["ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"] {
        command.env_remove(proxy).env_remove(proxy.to_lowercase());
    }
    finish(command)
}

/// The requests of a sample as the library's are written: prompt and continuation.
fn requests(sample: &Value) -> Value {
    let Some(choices) = sample["choices"].as_array() else { return json!([[sample["prompt"], null]]) };
    choices.iter().map(|choice| json!([sample["prompt"], choice])).collect()
}

#[test]
fn rows_of_the_hub_are_asked_as_the_library_asks_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let (cache, out) = (folder.path().join("cache"), folder.path().join("out"));
    let root = fixtures().join("hub");
    let asked = read_json(&root.join("asked.json"));
    let asked = asked.as_object().expect("tasks");
    let hub = serve(root);
    let tasks = asked.keys().map(String::as_str).collect::<Vec<_>>().join(",");
    let asking = ["--tasks", &tasks, "--out", &out.display().to_string(), "--json"];
    let told = eval(&hub, &cache, &asking).object();
    for (name, rows) in asked {
        let samples = samples(out.join(format!("samples_{name}.jsonl")));
        assert_eq!(samples.len(), rows.as_array().expect("rows").len(), "{name}");
        for (sample, row) in samples.iter().zip(rows.as_array().expect("rows")) {
            let mut expected = row["requests"].clone();
            if name == "winogrande" {
                // A sample names the first of the contexts that are chosen from.
                expected[1][0] = expected[0][0].clone();
            }
            assert_eq!(requests(sample), expected, "{name}");
            assert!(row["gold"].is_null() || row["gold"] == sample["gold"], "{name}: {row} {}", sample["gold"]);
        }
    }
    // The library's own humaneval cannot be had without its network: only that the columns serve.
    eval(&hub, &cache, &["--tasks", "humaneval,math500,gsm8k_cot"]).ok();
    let sums = told["data_sha256"].as_object().expect("sums");
    let read = format!("hf:allenai/ai2_arc@{COMMIT}/ARC-Easy/test");
    assert_eq!(sums[&read].as_str().map(str::len), Some(64), "{sums:?}");

    // The cache answers where the hub does not, and says so.
    let out = folder.path().join("again");
    let again = eval("http://127.0.0.1:1", &cache, &["--tasks", "arc_easy", "--out", &out.display().to_string()]);
    assert!(again.stderr.contains("using the copy in the cache"), "{}", again.stderr);
    again.ok();
    assert_eq!(read_json(&out.join("results.json"))["results"]["arc_easy"], told["results"]["arc_easy"]);
}

#[test]
fn what_the_hub_does_not_have_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = serve(folder.path().join("hub"));
    let cache = folder.path().join("cache");
    let ask = |task: &str| eval(&hub, &cache, &["--tasks", task]);
    ask("amc23").refused(1, &["amc23/test.jsonl", "--data"]);
    ask("arc_easy").refused(1, &["allenai/ai2_arc", "not in the cache"]);
    eval(&hub, &cache, &["--tasks", "arc_easy", "--any-data"]).refused(2, &["--any-data"]);

    // A data set that lacks a configuration.
    let put = |place: &str, from: &str| {
        let to = folder.path().join("hub").join(place);
        fs::create_dir_all(&to).expect("made");
        fs::copy(fixtures().join("hub").join(from).join("0000.parquet"), to.join("0000.parquet")).expect("copied");
    };
    put("allenai/ai2_arc/ARC-Challenge/test", "allenai/ai2_arc/ARC-Challenge/test");
    ask("arc_easy").refused(1, &["allenai/ai2_arc", "ARC-Easy/test", "no such part"]);
    // One in more files than a cache can be known to hold, and one with other columns.
    let more = folder.path().join("hub/allenai/winogrande/winogrande_xl/validation");
    put("allenai/winogrande/winogrande_xl/validation", "allenai/winogrande/winogrande_xl/validation");
    fs::copy(more.join("0000.parquet"), more.join("0001.parquet")).expect("copied");
    let larger = ask("winogrande");
    assert_eq!(larger.code, Some(1));
    assert!(larger.stderr.contains("is in 2 files, must be in one"), "{}", larger.stderr);
    put("baber/piqa/default/validation", "openai/gsm8k/main/test");
    let other = ask("piqa");
    assert_eq!(other.code, Some(1));
    assert!(other.stderr.contains("default/validation:1: has no text `sol1`"), "{}", other.stderr);
}
