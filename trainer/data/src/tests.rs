use std::io::Write;
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use ::parquet::schema::parser::parse_message_type;
use tempfile::NamedTempFile;

use runtime::text::Message as ChatMessage;
use serde_json::json;

use super::*;

fn jsonl(text: &str) -> Result<Vec<Row>> {
    let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("written");
    read(file.path(), None, None)
}

fn refusal(text: &str) -> String {
    jsonl(text).expect_err("must be refused").to_string()
}

#[test]
fn every_form_of_a_row_is_read() {
    let rows = jsonl(concat!(
        "{\"prompt\": \"Why?\", \"hint\": \"because\", \"weight\": 2, \"none\": null}\n\n",
        "{\"prompt\": [{\"role\": \"user\", \"content\": \"Why?\"}], \"completion\": \"So.\"}\n",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Why?\"}, {\"role\": \"assistant\", \"content\": \"So.\"}]}\n",
        "{\"prompt\": [{\"role\": \"user\", \"content\": \"Why?\"}], \"completion\": [{\"role\": \"assistant\", \"content\": \"So.\"}]}\n",
    ))
    .expect("valid");
    let chat = RowPrompt::Chat(vec![ChatMessage::new("user", "Why?")]);
    assert_eq!(rows[0].prompt, RowPrompt::Text("Why?".to_owned()));
    assert_eq!(rows[0].columns.get("hint").map(String::as_str), Some("because"));
    assert_eq!(rows[0].columns.get("weight").map(String::as_str), Some("2"));
    assert!(!rows[0].columns.contains_key("none"));
    for row in &rows[1..] {
        let text = match row.completion.as_ref().expect("given") {
            Completion::Text(text) => text.clone(),
            Completion::Message(message) => message.text(),
        };
        assert_eq!((&row.prompt, text.as_str()), (&chat, "So."));
    }
    assert_eq!(rows[1].origin.line, 3);
}

#[test]
fn a_null_key_is_absent_and_other_forms_of_a_conversation_are_read() {
    let plain = jsonl(
        "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"yo\"}]}",
    );
    let plain = plain.expect("valid").remove(0);
    for other in [
        json!({"messages": [{"role": "user", "content": "hi", "name": null, "tool_calls": null},
            {"role": "assistant", "content": "yo", "name": null}], "prompt": null, "tools": []}),
        json!({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}),
    ] {
        let row = jsonl(&other.to_string()).expect("valid").remove(0);
        assert_eq!((row.prompt, row.completion, row.tools), (plain.prompt.clone(), plain.completion.clone(), None));
    }
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1, "b": null}}}]});
    let tools = json!([{"name": "f", "parameters": null}]).to_string();
    let row = jsonl(&json!({"messages": [{"role": "user", "content": "hi"}, call], "tools": tools}).to_string());
    let row = row.expect("valid").remove(0);
    assert_eq!(row.tools, Some(json!([{"name": "f"}])));
    let Some(Completion::Message(message)) = row.completion else { panic!("a message") };
    assert_eq!(message.fields()["tool_calls"][0]["function"]["arguments"], json!({"a": 1}));
    let open = json!({"prompt": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "y"}], "completion": "o"});
    assert!(matches!(jsonl(&open.to_string()).expect("valid")[0].prompt, RowPrompt::Open(_)));
    let from = json!({"conversations": [{"from": "bing", "value": "hi"}]}).to_string();
    assert!(refusal(&from).contains("\"bing\""));
    assert!(refusal(&json!({"prompt": "x", "tools": 3}).to_string()).contains("`tools` must be a list"));
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}).to_string();
    assert!(refusal(&image).contains("`messages[0]`") && refusal(&image).contains("`image`"));
}

#[test]
fn a_bad_line_is_named() {
    let good = "{\"prompt\": \"x\"}\n";
    assert!(refusal(&format!("{good}{{\"prompt\": \"x\"\n")).contains(".jsonl:2: not JSON"));
    assert!(refusal(&format!("{good}{good}[1]\n")).contains(".jsonl:3: not a JSON object"));
    assert!(refusal("{\"text\": \"x\"}").contains("neither `prompt` nor `messages`, only [\"text\"]"));
    assert!(refusal("{\"prompt\": \"x\", \"messages\": []}").contains("both `prompt` and `messages`"));
    assert!(refusal("{\"prompt\": 3}").contains(":1: `prompt` must be a string"));
    assert!(refusal("{\"prompt\": \"\"}").contains("`prompt` is empty"));
    assert!(refusal("{\"messages\": [{\"role\": \"user\"}]}").contains("missing field `content`"));
    assert!(refusal("{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}]}").contains("no message before"));
}

#[test]
fn an_empty_or_missing_file_is_refused() {
    assert!(refusal("").contains("no rows"));
    assert!(refusal("\n\n").contains("no rows"));
    assert!(
        read(Path::new("/does/not/exist.jsonl"), None, None).expect_err("missing").to_string().contains("exist.jsonl")
    );
    assert!(read(Path::new("prompts.csv"), None, None).expect_err("format").to_string().contains("data.format"));
}

#[test]
fn parquet_rows_are_read() {
    let schema = "message rows { OPTIONAL BYTE_ARRAY prompt (UTF8); OPTIONAL DOUBLE score; }";
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let file = tempfile::Builder::new().suffix(".parquet").tempfile().expect("a temporary file");
    let mut writer = SerializedFileWriter::new(file.reopen().expect("open"), schema, Arc::new(WriterProperties::new()))
        .expect("a writer");
    let mut group = writer.next_row_group().expect("a row group");
    let mut column = group.next_column().expect("no error").expect("first column");
    column
        .typed::<ByteArrayType>()
        .write_batch(&[ByteArray::from("one"), ByteArray::from("two")], Some(&[1, 1]), None)
        .expect("written");
    column.close().expect("closed");
    let mut column = group.next_column().expect("no error").expect("second column");
    column.typed::<DoubleType>().write_batch(&[0.5], Some(&[1, 0]), None).expect("written");
    column.close().expect("closed");
    group.close().expect("closed");
    writer.close().expect("closed");

    let rows = read(file.path(), None, Some("score")).expect("valid");
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1].prompt, RowPrompt::Text("two".to_owned()));
    assert_eq!(rows[0].columns.get("score").map(String::as_str), Some("0.5"));
    assert!(rows[1].columns.is_empty());

    let broken = tempfile::Builder::new().suffix(".parquet").tempfile().expect("a temporary file");
    assert!(read(broken.path(), None, None).is_err());
    let unread = read(file.path(), None, None).expect("valid");
    assert!(unread[0].columns.is_empty(), "nobody asked for it");
}

/// A file of three prompts and `column`, in a codec.
fn with_column(column: &str, codec: Compression, write: impl Fn(&mut SerializedColumnWriter<'_>)) -> NamedTempFile {
    let schema = format!("message rows {{ REQUIRED BYTE_ARRAY prompt (UTF8); {column} }}");
    let schema = Arc::new(parse_message_type(&schema).expect("a schema"));
    let file = tempfile::Builder::new().suffix(".parquet").tempfile().expect("a temporary file");
    let properties = WriterProperties::builder().set_compression(codec).build();
    let mut writer = SerializedFileWriter::new(file.reopen().expect("open"), schema, Arc::new(properties)).expect("ok");
    let mut group = writer.next_row_group().expect("a row group");
    let mut prompts = group.next_column().expect("no error").expect("first column");
    let texts = ["one", "two", "three"].map(ByteArray::from);
    prompts.typed::<ByteArrayType>().write_batch(&texts, None, None).expect("written");
    prompts.close().expect("closed");
    while let Some(mut column) = group.next_column().expect("no error") {
        write(&mut column);
        column.close().expect("closed");
    }
    group.close().expect("closed");
    writer.close().expect("closed");
    file
}

#[test]
fn a_column_that_nobody_reads_may_have_any_type() {
    let long = |column: &mut SerializedColumnWriter<'_>| {
        column.typed::<Int64Type>().write_batch(&[1, 2, 3], None, None).expect("written");
    };
    let bytes = |column: &mut SerializedColumnWriter<'_>| {
        let values = ["\u{1}\u{2}"; 3].map(ByteArray::from);
        column.typed::<ByteArrayType>().write_batch(&values, None, None).expect("written");
    };
    let map = |column: &mut SerializedColumnWriter<'_>| {
        let values = ["k"; 3].map(ByteArray::from);
        column.typed::<ByteArrayType>().write_batch(&values, Some(&[1; 3]), Some(&[0; 3])).expect("written");
    };
    let plain = Compression::UNCOMPRESSED;
    let files = [
        with_column("REQUIRED INT64 other (TIMESTAMP_MILLIS);", plain, long),
        with_column("REQUIRED INT64 other (DECIMAL(10,2));", plain, long),
        with_column("REQUIRED INT64 other (TIME_MICROS);", plain, long),
        with_column("REQUIRED BYTE_ARRAY other;", plain, bytes),
        with_column(
            "REQUIRED group other { REQUIRED BYTE_ARRAY image; REQUIRED BYTE_ARRAY path (UTF8); }",
            plain,
            bytes,
        ),
        with_column(
            "REQUIRED group other (MAP) { REPEATED group key_value { REQUIRED BYTE_ARRAY key (UTF8); REQUIRED BYTE_ARRAY \
             value (UTF8); } }",
            plain,
            map,
        ),
    ];
    for (number, file) in files.iter().enumerate() {
        assert_eq!(read(file.path(), None, None).unwrap_or_else(|e| panic!("{number}: {e}")).len(), 3);
        let refused = read(file.path(), None, Some("other")).expect_err("it is used").to_string();
        assert!(refused.contains("column `other` is of the type"), "{refused}");
        // Where nobody says what is used, what can be used is read.
        let all = parquet::objects(file.path(), None).expect("valid");
        assert_eq!(all[2].keys().collect::<Vec<_>>(), ["prompt"]);
    }
}

#[test]
fn every_codec_is_read() {
    use ::parquet::basic::{BrotliLevel, GzipLevel, ZstdLevel};
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ];
    for codec in codecs {
        let file = with_column("", codec, |_| ());
        let rows = read(file.path(), None, None).unwrap_or_else(|e| panic!("{codec:?}: {e}"));
        assert_eq!(rows[2].prompt, RowPrompt::Text("three".to_owned()), "{codec:?}");
    }
}

/// Every column that a row is made of is read from a Parquet file, too.
#[test]
fn parquet_rows_have_tools_and_conversations() {
    let columns = [("prompt", "Why?"), ("tools", "[{\"name\": \"f\"}]")];
    let fields: String = columns.iter().map(|(name, _)| format!("OPTIONAL BYTE_ARRAY {name} (UTF8); ")).collect();
    let schema = Arc::new(parse_message_type(&format!("message rows {{ {fields} }}")).expect("a schema"));
    let file = tempfile::Builder::new().suffix(".parquet").tempfile().expect("a temporary file");
    let mut writer = SerializedFileWriter::new(file.reopen().expect("open"), schema, Arc::new(WriterProperties::new()))
        .expect("a writer");
    let mut group = writer.next_row_group().expect("a row group");
    for (_, text) in columns {
        let mut column = group.next_column().expect("no error").expect("a column");
        column.typed::<ByteArrayType>().write_batch(&[ByteArray::from(text)], Some(&[1]), None).expect("written");
        column.close().expect("closed");
    }
    group.close().expect("closed");
    writer.close().expect("closed");
    let row = read(file.path(), None, None).expect("valid").remove(0);
    assert_eq!(row.tools, Some(json!([{"name": "f"}])));
}
