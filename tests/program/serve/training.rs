//! A training run that serves, and is steered.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use super::client::{Response, Server, free_port, wait_until};
use crate::support::{Workshop, arle, fixture, read_json};

/// A run that nobody would wait for the end of.
fn start(workshop: &Workshop, run: &str, args: &[&str]) -> Server {
    let address = format!("127.0.0.1:{}", free_port());
    let mut command =
        workshop.command(run, &[&["--serve", &address, "--set", "schedule.max_steps=100000"], args].concat());
    let child: Child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    let server = Server { child, address };
    wait_until("listening", || std::net::TcpStream::connect(&server.address).is_ok());
    server
}

fn status(server: &Server) -> Value {
    server.get("/v1/train/status").ok()
}

fn steps(server: &Server) -> u64 {
    status(server)["iter"].as_u64().expect("a number")
}

#[test]
fn a_run_answers_and_is_steered_while_it_trains() {
    let workshop = Workshop::new();
    workshop.replace("every = 1", "every = 0");
    let mut server = start(&workshop, "run", &[]);
    wait_until("training", || steps(&server) >= 2);
    let before = status(&server);
    assert_eq!(
        (&before["started"], &before["finished"], &before["total_iters"]),
        (&json!(true), &json!(false), &json!(100_000))
    );
    assert!(before["last_loss"].is_f64() && before["mean_reward"].is_null());

    // It answers with the weights of some step, and goes on training.
    let body = json!({"model": "student", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 5, "ignore_eos": true});
    let answer = server.post("/v1/chat/completions", &body).ok();
    let versions = answer["choices"][0]["weights_versions"].as_array().expect("versions");
    assert!(versions.iter().all(|version| version.as_u64() >= Some(1)), "{versions:?}");
    server.post("/v1/completions", &json!({"model": "teacher", "prompt": "a", "max_tokens": 2})).ok();
    let then = steps(&server);
    wait_until("further", || steps(&server) > then);

    // Held, it stays where it is; a checkpoint can be had all the same.
    assert_eq!(server.post("/v1/train/pause", &json!({})).ok(), json!({"pause_requested": true}));
    let mut last = steps(&server);
    wait_until("held", || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        std::mem::replace(&mut last, steps(&server)) == last
    });
    let seen = server.get("/v1/train/events").ok()["latest_seq"].as_u64().expect("a number");
    assert_eq!(server.post("/v1/train/save", &json!({})).ok(), json!({"save_requested": true}));
    let events = || server.get(&format!("/v1/train/events?after_seq={seen}")).ok()["events"].clone();
    wait_until("saved", || {
        events().as_array().is_some_and(|all| all.iter().any(|event| event["kind"] == "checkpoint"))
    });
    let all = events();
    assert!(all.as_array().expect("events").iter().all(|event| event["seq"].as_u64() > Some(seen)));
    assert!(workshop.names("run/checkpoints").contains(&format!("step_{last:06}")));
    server.post("/v1/train/resume", &json!({})).ok();
    wait_until("going on", || steps(&server) > last);

    // The run's own page may steer it, one of somebody's may not; its owner stops it, with a checkpoint that resumes.
    let own = format!("http://{}", server.address);
    server.send("POST", "/v1/train/resume", &[("origin", &own)], "").ok();
    let page = server.send("POST", "/v1/train/stop", &[("origin", "https://example.org")], "");
    page.refused(403, None, "forbidden");
    let stop: Response = server.post("/v1/train/stop", &json!({}));
    assert_eq!(stop.ok(), json!({"stop_requested": true}));
    assert_eq!(server.child.wait().expect("it ends").code(), Some(130));
    let newest = workshop.names("run/checkpoints").pop().expect("a checkpoint");
    let stopped: u64 = newest.trim_start_matches("step_").parse().expect("a step");
    let more = format!("schedule.max_steps={}", stopped + 1);
    workshop.train("run", &["--resume", "--set", &more]).ok();
    let metrics = workshop.metrics("run");
    assert_eq!(metrics.last().expect("a line")["step"], json!(stopped + 1));
}

/// Reads a stream of events until one of this kind has come; each as its id, its kind and its data.
fn read_events(stream: &mut BufReader<Chunks>, until: &str) -> Vec<(u64, String, Value)> {
    let mut events = Vec::new();
    let (mut id, mut kind) = (0, String::new());
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).expect("a line") > 0, "the stream ended before {until}: {events:?}");
        if let Some(text) = line.trim_end().strip_prefix("id: ") {
            id = text.parse().expect("a number");
        } else if let Some(text) = line.trim_end().strip_prefix("event: ") {
            kind = text.to_owned();
        } else if let Some(data) = line.trim_end().strip_prefix("data: ") {
            events.push((id, kind.clone(), serde_json::from_str(data).expect("JSON")));
            if kind == until {
                return events;
            }
        }
    }
}

fn follow(server: &Server, path: &str, headers: &[(&str, &str)]) -> BufReader<Chunks> {
    let headers = [&[("accept", "text/event-stream")], headers].concat();
    let stream = BufReader::new(server.open("GET", path, &headers, ""));
    BufReader::new(Chunks { stream, headed: false, left: 0 })
}

/// The body of an answer in chunks, whose borders a server may put anywhere (RFC 9112, section 7.1).
struct Chunks {
    stream: BufReader<TcpStream>,
    /// The head of the answer is read.
    headed: bool,
    left: usize,
}

impl Read for Chunks {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let mut line = String::new();
        while !self.headed {
            line.clear();
            self.headed = self.stream.read_line(&mut line)? <= 2;
        }
        while self.left == 0 {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 || line.trim() == "0" {
                return Ok(0);
            }
            // The end of the chunk before is an empty line.
            self.left =
                if line.trim().is_empty() { 0 } else { usize::from_str_radix(line.trim(), 16).expect("a size") };
        }
        let most = into.len().min(self.left);
        let read = self.stream.read(&mut into[..most])?;
        self.left -= read;
        Ok(read)
    }
}

#[test]
fn events_come_as_they_happen() {
    let workshop = Workshop::new();
    workshop.replace("every = 1", "every = 0");
    let mut server = start(&workshop, "run", &["--set", "eval.sample_prompts=[\"Why?\"]"]);
    let mut stream = follow(&server, "/v1/train/events", &[]);
    let first = read_events(&mut stream, "sample");
    assert_eq!((first[0].0, first[0].1.as_str()), (1, "run_start"));
    assert!(first.iter().zip(1..).all(|((id, kind, data), number)| {
        *id == number && data["seq"] == json!(number) && data["kind"] == json!(kind)
    }));
    let (_, _, sample) = first.last().expect("a sample");
    assert_eq!((&sample["strings"]["prompt"], sample["step"].as_u64()), (&json!("Why?"), Some(0)));
    assert!(sample["strings"]["completion"].is_string(), "{sample}");
    // A reader that comes back goes on where it was, whatever its address says.
    let seen = first.len() as u64;
    let mut again = follow(&server, "/v1/train/events?after_seq=0", &[("last-event-id", &seen.to_string())]);
    assert_eq!(read_events(&mut again, "metric")[0].0, seen + 1);
    // The end of the run is the end of the stream, and it is told.
    server.post("/v1/train/stop", &json!({})).ok();
    let last = read_events(&mut stream, "run_end");
    assert_eq!(last.last().expect("an event").2["strings"]["status"], "stopped");
    assert_eq!(server.child.wait().expect("it ends").code(), Some(130));
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("the stream ends");
    assert!(!rest.contains("data: "), "{rest}");
}

#[test]
fn the_learning_rate_changes_at_a_boundary_and_survives() {
    let workshop = Workshop::new();
    workshop.replace("every = 1", "every = 0");
    workshop.replace("every = 2", "every = 0");
    let mut server = start(&workshop, "run", &[]);
    wait_until("training", || steps(&server) >= 2);
    assert_eq!(status(&server)["last_lr"], json!(0.01));
    server.post("/v1/train/pause", &json!({})).ok();
    let held = || server.get("/v1/train/events").ok()["latest_seq"].clone();
    let mut before = Value::Null;
    wait_until("held", || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        std::mem::replace(&mut before, held()) == before
    });
    let step = steps(&server);
    // A checkpoint of this very step, from before the change.
    server.post("/v1/train/save", &json!({})).ok();
    let saved = || {
        let events = server.get("/v1/train/events").ok()["events"].clone();
        events.as_array().expect("events").iter().filter(|event| event["kind"] == "checkpoint").count()
    };
    let state = || read_json(&workshop.path(&format!("run/checkpoints/step_{step:06}/trainer_state.json")));
    wait_until("saved", || saved() == 1);
    assert_eq!(state().get("lr"), None);
    let set = |body: Value| server.post("/v1/train/lr", &body);
    for bad in [json!(0), json!(-1e-3), json!("fast")] {
        set(json!({"lr": bad})).refused(400, Some("lr"), "invalid_parameter");
    }
    set(json!({})).refused(400, Some("lr"), "invalid_parameter");
    set(json!({"lr": 1e-3, "steps": 3})).refused(400, Some("steps"), "unknown_parameter");
    assert_eq!(set(json!({"lr": 4e-3})).ok(), json!({"lr_requested": 4e-3}));
    server.post("/v1/train/save", &json!({})).ok();
    wait_until("amended", || state().get("lr") == Some(&json!(4e-3)));
    assert_eq!(saved(), 1, "its weights are not written again");
    server.post("/v1/train/resume", &json!({})).ok();
    wait_until("going on", || status(&server)["last_lr"] == json!(4e-3));
    let events = server.get("/v1/train/events").ok()["events"].clone();
    let changed = events.as_array().expect("events").iter().find(|event| event["strings"]["lr_changed"] == "true");
    assert_eq!(changed.map(|event| (&event["step"], &event["scalars"]["lr"])), Some((&json!(step), &json!(4e-3))));
    server.post("/v1/train/stop", &json!({})).ok();
    assert_eq!(server.child.wait().expect("it ends").code(), Some(130));
    for line in workshop.metrics("run") {
        let expected = if line["step"].as_u64() <= Some(step) { 1e-2 } else { 4e-3 };
        assert_eq!(line.get("optim/lr").unwrap_or(&json!(1e-2)), &json!(expected), "{line:?}");
    }
    let stopped = workshop.metrics("run").last().expect("a line")["step"].as_u64().expect("a step");
    let more = format!("schedule.max_steps={}", stopped + 1);
    workshop.train("run", &["--resume", "--set", &more]).ok();
    let metrics = workshop.metrics("run");
    let last = metrics.last().expect("a line");
    assert_eq!((&last["step"], &last["optim/lr"]), (&json!(stopped + 1), &json!(4e-3)));
}

#[test]
fn another_server_passes_the_control_plane_on() {
    let workshop = Workshop::new();
    workshop.write("keys", "reader\n");
    workshop.write("admins", "boss\n");
    let keys =
        ["--api-key-file", &workshop.name("keys"), "--admin-key-file", &workshop.name("admins")].map(str::to_owned);
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut run = start(&workshop, "run", &keys);
    let url = format!("http://{}", run.address);
    let server = Server::tiny(&["--train-control-url", &url]);
    // The run checks the keys.
    server.get("/v1/train/status").refused(401, None, "invalid_api_key");
    let (reader, boss) = (("authorization", "Bearer reader"), ("authorization", "Bearer boss"));
    let status = || server.send("GET", "/v1/train/status", &[reader], "").ok();
    wait_until("training", || status()["iter"].as_u64() >= Some(3));
    let status = status();
    assert_eq!((&status["started"], &status["total_iters"]), (&json!(true), &json!(100_000)));
    server.send("POST", "/v1/train/pause", &[reader], "").refused(401, None, "invalid_api_key");
    server.send("POST", "/v1/train/lr", &[boss], "{\"lr\": 0}").refused(400, Some("lr"), "invalid_parameter");
    assert_eq!(server.send("POST", "/v1/train/lr", &[boss], "{\"lr\": 0.5}").ok(), json!({"lr_requested": 0.5}));
    let page = [boss, ("origin", "https://example.org")];
    server.send("POST", "/v1/train/stop", &page, "").refused(403, None, "forbidden");
    server.send("GET", "/v1/train/nothing", &[reader], "").refused(404, None, "route_not_found");
    let after = server.send("GET", "/v1/train/events?after_seq=3", &[reader], "").ok();
    assert_eq!(after["events"][0]["seq"], 4);
    let mut stream = follow(&server, "/v1/train/events?after_seq=1", &[reader]);
    assert_eq!(read_events(&mut stream, "metric")[0].0, 2);
    server.send("POST", "/v1/train/stop", &[boss], "").ok();
    assert_eq!(read_events(&mut stream, "run_end").last().expect("an event").2["strings"]["status"], "stopped");
    run.child.wait().expect("it ends");
    let message = server.get("/v1/train/status").refused(502, None, "train_control_unreachable");
    assert!(message.contains(&url), "{message}");
    // Its own requests go on.
    server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 1})).ok();
}

#[test]
fn a_run_that_does_not_answer_is_given_up() {
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/base", deaf.local_addr().expect("an address"));
    let log = tempfile::NamedTempFile::new().expect("a file");
    let args = ["--train-control-url", &url, "--request-timeout", "1", "--drain-timeout", "3"];
    let mut command = Server::command(&fixture("tiny-chat"), &args);
    command.stderr(log.reopen().expect("the file"));
    let mut server = Server::launch(command);
    wait_until("ready", || server.get("/ready").status == 200);
    server.get("/v1/train/status").refused(504, None, "timeout");
    let (mut heard, mut bytes) = (deaf.accept().expect("a connection").0, [0; 40]);
    heard.read_exact(&mut bytes).expect("a request");
    assert!(bytes.starts_with(b"GET /base/v1/train/status HTTP/1.1\r\n"), "{bytes:?}");
    // Whoever follows events does not hold a server that stops.
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nevent: metric\ndata: 1\n\n";
    let mut stream = follow(&server, "/v1/train/events", &[]);
    let (mut heard, _) = deaf.accept().expect("a connection");
    heard.read_exact(&mut bytes).expect("a request");
    heard.write_all(answer.as_bytes()).expect("sent");
    read_events(&mut stream, "metric");
    server.signal("TERM");
    assert_eq!(server.child.wait().expect("it ends").code(), Some(0));
    let log = std::fs::read_to_string(log.path()).expect("a log");
    assert!(log.contains("stopping") && !log.contains("the time to stop is over"), "{log}");
}

#[test]
fn a_server_without_a_run_says_so() {
    let server = Server::tiny(&[]);
    server.get("/v1/train/status").refused(404, None, "train_control_unconfigured");
    server.post("/v1/train/stop", &json!({})).refused(404, None, "train_control_unconfigured");
    server.post("/v1/train/lr", &json!({"lr": 1e-3})).refused(404, None, "train_control_unconfigured");
    let address = [
        "serve",
        "--model",
        &fixture("tiny-chat"),
        "--device",
        "cpu",
        "--port",
        "0",
        "--train-control-url",
        "https://x",
    ];
    let ended = arle(&address);
    assert!(ended.code == Some(2) && ended.stderr.contains("https is not supported"), "{ended:?}");
}
