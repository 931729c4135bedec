//! A training run that serves, and is steered.

use std::net::TcpListener;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use super::client::{Response, Server, wait_until};
use crate::support::Workshop;

/// A run that nobody would wait for the end of.
fn start(workshop: &Workshop, run: &str, args: &[&str]) -> Server {
    // The port is free again when the run takes it; nobody else here asks for a certain one.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let address = format!("127.0.0.1:{port}");
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

    // A page of somebody's does not steer it; its owner stops it, with a checkpoint that resumes.
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

#[test]
fn a_server_without_a_run_says_so() {
    let server = Server::tiny(&[]);
    server.get("/v1/train/status").refused(404, None, "train_control_unconfigured");
    server.post("/v1/train/stop", &json!({})).refused(404, None, "train_control_unconfigured");
}
