use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::*;

/// A server that answers its connections with these responses, one after another, and then goes away; returns its URL.
pub(super) fn scripted<S: AsRef<str> + Send + 'static>(
    responses: Vec<S>,
) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let serve = move || -> Vec<String> {
        let answered =
            responses.into_iter().map(|response| answer(listener.accept().expect("a client").0, response.as_ref()));
        answered.collect()
    };
    (url, std::thread::spawn(serve))
}

/// Reads a request, answers it and closes; returns the head of the request.
fn answer(stream: TcpStream, response: &str) -> String {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().expect("a length");
        }
        if line.trim().is_empty() {
            break;
        }
        head += &line;
    }
    reader.read_exact(&mut vec![0; length]).expect("a body");
    // A client leaves an answer that is longer than what it asked for.
    if let Err(error) = reader.get_mut().write_all(response.as_bytes()) {
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    }
    head
}

pub(super) fn remote(url: &str) -> Remote {
    Remote {
        url: url.to_owned(),
        api: Api::Arle,
        served_model: None,
        api_key_file: None,
        ca_file: None,
        timeout_s: 10,
        retries: 3,
        concurrency: 1,
        rows: None,
    }
}

fn post(url: &str) -> Result<String> {
    let client = TeacherClient::new(&remote(url), Interrupt::default(), Progress::new(true))?;
    client.post("/v1/score", &serde_json::json!({}), 1000).map(|answer| String::from_utf8(answer.body).expect("text"))
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\ndone";

#[test]
fn what_may_pass_is_asked_again() {
    // A busy server that says when to come back, one that fails, one that breaks off in its answer.
    let busy = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let broken = "HTTP/1.1 200 OK\r\ncontent-length: 400\r\nconnection: close\r\n\r\nhalf of it";
    let failing =
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let (url, server) = scripted(vec![busy, failing, broken, OK]);
    assert_eq!(post(&url).expect("answered at last"), "done");
    assert_eq!(server.join().expect("it ends").len(), 4);
}

#[test]
fn a_server_says_when_to_come_back() {
    let [half, two, long] = [500, 2000, 3_600_000].map(Duration::from_millis);
    assert_eq!(client::pause_before_next(Some(two), half), two);
    assert_eq!(client::pause_before_next(None, half), half);
    assert_eq!(client::pause_before_next(Some(long), half), Duration::from_secs(30));
}

#[test]
fn what_will_not_pass_is_an_error_at_once() {
    let body = r#"{"error": {"message": "top_k = 301: too many", "type": "x", "param": null, "code": null}}"#;
    let response =
        format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    let (url, server) = scripted(vec![Box::leak(response.into_boxed_str())]);
    let error = post(&url).expect_err("refused");
    assert!(matches!(error, Error::Teacher { .. }) && error.exit_code() == 1, "{error}");
    assert_eq!(error.to_string(), format!("teacher {url}: /v1/score: 400 Bad Request: top_k = 301: too many"));
    assert_eq!(server.join().expect("it ends").len(), 1);
}

#[test]
fn the_last_try_names_address_and_status() {
    let failing = "HTTP/1.1 502 Bad Gateway\r\nretry-after: 0\r\ncontent-length: 4\r\nconnection: close\r\n\r\ngone";
    let (url, server) = scripted(vec![failing; 4]);
    let error = post(&url).expect_err("lost");
    assert_eq!(error.exit_code(), 4);
    for word in [&format!("{url}/v1/score"), "4 tries", "502 Bad Gateway: gone", "teacher.retries"] {
        assert!(error.to_string().contains(word), "{word} is not in {error}");
    }
    assert_eq!(server.join().expect("it ends").len(), 4);
}

#[test]
fn another_kind_of_server_is_told_apart() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny-chat");
    let student = ModelFiles::open(std::path::Path::new(path)).expect("a fixture");
    let missing = "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
    let unlike = "HTTP/1.1 200 OK\r\ncontent-length: 17\r\nconnection: close\r\n\r\n{\"eos_token\": \"x\"}";
    for response in [missing, unlike] {
        let (url, _server) = scripted(vec![response]);
        let error = RemoteTeacher::connect(&remote(&url), &student, false, &Interrupt::default(), Progress::new(true))
            .err()
            .expect("refused");
        assert!(error.to_string().contains("`teacher.api = \"openai\"`"), "{error}");
    }
}

#[test]
fn a_key_is_sent_as_a_bearer() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("key");
    std::fs::write(&path, "# teacher\n  secret  \nother\n").expect("written");
    let (url, server) = scripted(vec![OK]);
    let client = |path: &std::path::Path| {
        let remote = Remote { api_key_file: Some(path.to_owned()), ..remote(&url) };
        TeacherClient::new(&remote, Interrupt::default(), Progress::new(true))
    };
    client(&path).expect("a key").get("/x", Some(("model", "a b")), 1000).expect("answered");
    let head = server.join().expect("it ends").remove(0).to_ascii_lowercase();
    assert!(head.contains("authorization: bearer secret\r\n"), "{head}");
    assert!(head.starts_with("get /x?model=a%20b "), "{head}");
    std::fs::write(&path, "# nothing\n").expect("written");
    assert!(client(&path).err().expect("refused").to_string().contains("teacher.api_key_file"));
}

#[test]
fn work_is_bounded_ordered_and_ends_with_the_first_error() {
    let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let items: Vec<usize> = (0..40).collect();
    let doubled = in_parallel(&items, 3, |item| {
        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::yield_now();
        running.fetch_sub(1, Ordering::SeqCst);
        Ok(2 * item)
    });
    assert_eq!(doubled.expect("all"), items.iter().map(|i| 2 * i).collect::<Vec<_>>());
    assert!(most.into_inner() <= 3);
    let done = AtomicUsize::new(0);
    let failed = in_parallel(&items, 1, |&item| {
        done.fetch_add(1, Ordering::SeqCst);
        if item == 5 { Err(Error::value("item", item, "another")) } else { Ok(()) }
    });
    assert!(failed.is_err() && done.into_inner() == 6);
    assert!(in_parallel(&[] as &[usize], 3, |_| Ok(())).expect("nothing to do").is_empty());
}

/// Rows whose token has no weight are left out in every format.
#[test]
fn rows_without_a_weight_are_left_out() {
    let weights = [1.0, 0.0, 0.5];
    let mut logits = BatchScores::new(ScoreFormat::Logits(Precision::Bf16));
    logits.push(TeacherScores::Logits((0..12).collect()), &weights);
    logits.push(TeacherScores::Logits(vec![20, 21, 22, 23]), &[2.0]);
    let given = logits.finish(2);
    let Some(autograd::ops::TeacherRows::Logits(rows)) = given.rows.as_deref() else { panic!("{given:?}") };
    assert_eq!(rows.bytes, [0, 1, 2, 3, 8, 9, 10, 11, 20, 21, 22, 23]);
    let mut top = BatchScores::new(ScoreFormat::Top { k: 2, temperature: 0.5 });
    let (own, tails) = (vec![-1.0, -2.0, -3.0], vec![-4.0, -5.0, -6.0]);
    let logprobs = vec![-0.1, -0.2, -0.3, -0.4, -0.5, -0.6];
    top.push(TeacherScores::LogProbs { own, ids: vec![1, 2, 3, 4, 5, 6], logprobs, tails }, &weights);
    let given = top.finish(9);
    let Some(autograd::ops::TeacherRows::Top(rows)) = given.rows.as_deref() else { panic!("{given:?}") };
    assert_eq!((given.logprobs, given.temperature), (vec![-1.0, -3.0], 0.5));
    assert_eq!((&rows.ids[..], &rows.logprobs[..]), (&[1, 2, 5, 6][..], &[-0.1, -0.2, -0.5, -0.6][..]));
    assert_eq!(rows.tail_logprobs, [-4.0, -6.0]);
}
