use super::*;

const MINIMAL: &str = r#"
[student]
model = "hf:org/student"
[teacher]
kind = "self"
system_prompt = "Be a pirate."
[lora]
[data]
path = "prompts.jsonl"
eval_rows = 4
[schedule]
max_steps = 10
"#;

fn load(text: &str, set: &[&str]) -> Result<Recipe> {
    let overrides: Vec<Override> = set.iter().map(|text| Override::parse(text).expect("an override")).collect();
    Recipe::parse(text, "test.toml", "test", Path::new("/recipes"), &overrides)
}

fn refusal(set: &[&str]) -> String {
    load(MINIMAL, set).expect_err("must be refused").to_string()
}

#[test]
fn defaults_are_filled_in_and_the_result_is_a_recipe() {
    let recipe = load(MINIMAL, &[]).expect("valid");
    assert_eq!(recipe.optim.lr, 1e-4);
    assert_eq!(recipe.data.paths, [PathBuf::from("/recipes/prompts.jsonl")]);
    assert_eq!(recipe.eval.as_ref().map(|eval| eval.max_new_tokens), Some(128));
    assert_eq!(recipe.name, "test");
    let written = recipe.to_toml();
    assert!(written.contains("lr = 0.0001"), "{written}");
    let again = Recipe::parse(&written, "config.toml", "other", Path::new("/elsewhere"), &[]).expect("valid again");
    assert_eq!(again.differences(&recipe), []);
    assert_eq!(again.to_toml(), written);
}

#[test]
fn deterministic_is_refused_where_it_cannot_hold() {
    let on = "runtime.deterministic=true";
    assert!(load(MINIMAL, &[on, "runtime.device=cpu"]).expect("valid").runtime.deterministic);
    let reference = refusal(&[on, "runtime.device=reference"]);
    assert!(reference.starts_with("`runtime.deterministic` is true, must be false on reference"), "{reference}");
    let merged = refusal(&[on, "runtime.device=cuda", "runtime.merge_adapter=true"]);
    assert!(merged.contains("`runtime.deterministic`") && merged.contains("`runtime.merge_adapter`"), "{merged}");
}

#[test]
fn full_fine_tuning_has_its_own_rate() {
    assert_eq!(load(&MINIMAL.replace("[lora]", ""), &[]).expect("valid").optim.lr, 1e-5);
}

#[test]
fn an_unknown_key_names_the_nearest_one() {
    assert_eq!(refusal(&["optim.zzz=1"]), "unknown key `optim.zzz`");
    assert_eq!(refusal(&["optim.learning_rate=1"]), "unknown key `optim.learning_rate`; did you mean `optim.lr`?");
    assert_eq!(
        refusal(&["optim.max_grad_nrm=1"]),
        "unknown key `optim.max_grad_nrm`; did you mean `optim.max_grad_norm`?"
    );
    assert_eq!(
        refusal(&["rollout.sampling.temprature=1"]),
        "unknown key `rollout.sampling.temprature`; did you mean `rollout.sampling.temperature`?"
    );
    assert_eq!(refusal(&["rollouts.group_size=1"]), "unknown key `rollouts`; did you mean `rollout`?");
    assert_eq!(
        refusal(&["rollout.temperature=1"]),
        "unknown key `rollout.temperature`; did you mean `rollout.sampling.temperature`?"
    );
}

#[test]
fn a_section_is_a_table_and_errors_name_no_types() {
    assert_eq!(refusal(&["lora=3"]), "`lora` is 3, must be a table, as in [lora]");
    assert_eq!(
        refusal(&["rollout.sampling=[]"]),
        "`rollout.sampling` is [], must be a table, as in [rollout.sampling]"
    );
    let list = refusal(&["lora.target_modules=3"]);
    assert!(list.contains("expected a value or a list of values") && list.contains("lora.target_modules"), "{list}");
    let number = refusal(&["schedule.max_steps=-1"]);
    assert!(number.contains("expected a whole number of at least 0"), "{number}");
}

#[test]
fn other_programs_names_lead_to_ours() {
    for (theirs, ours) in [
        ("lora.rank", "lora.r"),
        ("lora.lora_alpha", "lora.alpha"),
        ("rollout.num_generations", "rollout.group_size"),
        ("schedule.num_train_epochs", "schedule.epochs"),
        ("learning_rate", "optim.lr"),
    ] {
        assert_eq!(refusal(&[&format!("{theirs}=1")]), format!("unknown key `{theirs}`; did you mean `{ours}`?"));
    }
    let known: Vec<String> = raw::sections()
        .iter()
        .flat_map(|(section, keys)| keys.iter().map(move |key| format!("{section}.{key}")))
        .collect();
    for (theirs, ours) in super::names::SYNONYMS {
        assert!(known.iter().any(|key| key == ours), "{theirs} leads to {ours}, which is no key");
    }
}

#[test]
fn every_section_is_checked_for_unknown_keys() {
    for (section, known) in raw::sections() {
        assert!(!known.is_empty(), "{section} has no keys");
        let key = if section.is_empty() { "zzz=1".to_owned() } else { format!("{section}.zzz=1") };
        let error = load(MINIMAL, &[&key]).expect_err("unknown key");
        assert!(matches!(error, Error::UnknownKey { .. }), "{section}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn a_value_outside_its_domain_names_key_value_and_limit() {
    let cases = [
        ("optim.lr=0", "`optim.lr` is 0, must be greater than 0"),
        ("optim.lr=nan", "`optim.lr` is NaN, must be greater than 0"),
        ("lora.r=0", "`lora.r` is 0, must be at least 1"),
        ("lora.dropout=1", "`lora.dropout` is 1, must be at least 0 and below 1"),
        ("rollout.sampling.top_p=0", "`rollout.sampling.top_p` is 0, must be above 0 and at most 1"),
        ("rollout.sampling.temperature=-1", "`rollout.sampling.temperature` is -1, must be at least 0"),
        ("rollout.group_size=0", "`rollout.group_size` is 0, must be at least 1"),
        ("lora.r=4294967296", "`lora.r` is 4294967296, must be at most 65536"),
        ("runtime.max_running=1099511627776", "`runtime.max_running` is 1099511627776, must be at most 65536"),
        (
            "rollout.prompts_per_step=9223372036854775807",
            "`rollout.prompts_per_step` is 9223372036854775807, must be at most 1048576",
        ),
        (
            "rollout.max_new_tokens=9223372036854775807",
            "`rollout.max_new_tokens` is 9223372036854775807, must be at most 16777216",
        ),
        ("loss.lmbda=1.5", "`loss.lmbda` is 1.5, must be between 0 and 1"),
        ("schedule.max_steps=0", "`schedule.max_steps` is 0, must be at least 1"),
        ("schedule.warmup_steps=11", "`schedule.warmup_steps` is 11, must be at most `schedule.max_steps` (10)"),
        ("checkpoint.keep_last=0", "`checkpoint.keep_last` is 0, must be at least 1"),
        ("student.layers=[1, 1]", "`student.layers` is [1, 1], must be ascending without repeats; 1 stands before 1"),
        ("optim.betas=[0.9, 1.0]", "`optim.betas` is [0.9, 1.0], must be two numbers, each at least 0 and below 1"),
        (
            "log.name=../up",
            "`log.name` is \"../up\", must be letters, digits, `-`, `_` and `.` (it names the run's folder)",
        ),
    ];
    for (set, message) in cases {
        assert_eq!(refusal(&[set]), message);
    }
    let product = refusal(&["rollout.prompts_per_step=1048576", "rollout.group_size=1048576"]);
    assert!(product.contains("`rollout.prompts_per_step * rollout.group_size` is 1099511627776"), "{product}");
    assert!(refusal(&["loss.kind=kl"]).contains("one of reverse_kl"));
    assert!(refusal(&["teacher.kind=other"]).contains("one of model, self, checkpoint"));
    assert!(refusal(&["runtime.device=tpu"]).contains("runtime.device"));
    assert!(
        refusal(&["teacher.offload=true"])
            .contains("`teacher.offload` is true, must be false unless the run is on a GPU")
    );
    assert!(
        refusal(&["optim.offload=true"]).contains("`optim.offload` is true, must be false unless the run is on a GPU")
    );
    assert!(refusal(&["schedule.max_seconds=0"]).contains("greater than 0"));
    assert!(refusal(&["schedule.max_seconds=9", "schedule.kind=cosine"]).contains("constant"));
    assert!(refusal(&["runtime.tokens_per_microbatch=100"]).contains("at least `rollout.max_prompt_tokens`"));
}

#[test]
fn a_wrong_type_names_the_key() {
    let message = refusal(&["optim.lr=fast"]);
    assert!(message.contains("lr") && message.contains("test.toml"), "{message}");
}

#[test]
fn memory_is_written_as_people_write_it() {
    let runtime = |set: &[&str]| load(MINIMAL, &[&["runtime.device=cpu"], set].concat()).expect("valid").runtime;
    assert_eq!(runtime(&[]).kv_bytes, None);
    assert_eq!(runtime(&["runtime.kv_bytes=8GiB"]).kv_bytes, Some(KvSize::Bytes(8 << 30)));
    assert_eq!(runtime(&["runtime.kv_bytes=1024"]).kv_bytes, Some(KvSize::Bytes(1024)));
    assert_eq!(runtime(&["runtime.kv_bytes=60%"]).kv_bytes, Some(KvSize::Share(0.6)));
    assert!(refusal(&["runtime.kv_bytes=0.6"]).contains("60%"), "{}", refusal(&["runtime.kv_bytes=0.6"]));
    assert_eq!(runtime(&[]).gradient_checkpointing, Checkpointing::Auto);
    for (text, checkpointing) in
        [("true", Checkpointing::On), ("false", Checkpointing::Off), ("auto", Checkpointing::Auto)]
    {
        let set = format!("runtime.gradient_checkpointing={text}");
        assert_eq!(runtime(&[&set]).gradient_checkpointing, checkpointing);
    }
    assert!(refusal(&["runtime.gradient_checkpointing=some"]).contains("auto"));
    let recipe = load(MINIMAL, &["runtime.kv_bytes=60%"]).expect("valid");
    let again = Recipe::parse(&recipe.to_toml(), "config.toml", "test", Path::new("/"), &[]).expect("valid again");
    assert_eq!(again.differences(&recipe), []);
}

#[test]
fn a_key_without_effect_is_refused() {
    let cases: &[(&[&str], &str)] = &[
        (&["loss.kind=reverse_kl", "loss.beta=0.5"], "loss.beta"),
        (&["loss.kind=jsd", "loss.alpha=0.1"], "loss.alpha"),
        (&["loss.kind=jsd", "loss.top_k=8"], "loss.top_k"),
        (&["loss.kind=policy_gradient", "loss.temperature=2.0"], "loss.temperature"),
        (&["loss.coef=2.0"], "loss.coef"),
        (&["loss.seq_kd=true"], "loss.seq_kd"),
        (&["loss.off_policy=cross_entropy"], "loss.off_policy"),
        (&["teacher.model=hf:a/b"], "teacher.model"),
        (&["teacher.path=x"], "teacher.path"),
        (&["teacher.context_template=x {context}"], "teacher.context_template"),
        (&["schedule.min_lr_ratio=0.1"], "schedule.min_lr_ratio"),
        (&["data.held_out=x.jsonl"], "data.eval_rows"),
        (&["data.shuffle=false", "data.seed=3"], "data.seed"),
        (&["rollout.sampling.temperature=0", "rollout.sampling.top_k=3"], "rollout.sampling.top_k"),
        (&["rollout.sampling.temperature=0", "rollout.group_size=2"], "rollout.group_size"),
        (&["loss.kind=cross_entropy"], "teacher"),
    ];
    for (set, key) in cases {
        let error = load(MINIMAL, set).expect_err("idle key");
        assert!(
            matches!(&error, Error::Input(command::Error::NoEffect { key: named, .. }) if named == key),
            "{set:?}: {error}"
        );
    }
    let both = MINIMAL.replace("max_steps = 10", "max_steps = 10\nepochs = 1");
    assert!(load(&both, &[]).expect_err("two lengths").to_string().contains("schedule.epochs"));
    let without_held_out = MINIMAL.replace("eval_rows = 4", "");
    let error = load(&without_held_out, &["eval.every=5"]).expect_err("nothing to measure");
    assert!(error.to_string().contains("without held-out rows"), "{error}");
    let hub = ["eval.tasks=[\"gsm8k\"]", "eval.data=\"hf:\"", "eval.any_data=true"];
    assert!(refusal(&hub).contains("eval.any_data"));
    // As a run writes it.
    load(MINIMAL, &[hub[0], hub[1], "eval.any_data=false"]).expect("nothing idle");
}

#[test]
fn what_the_other_settings_need_must_be_there() {
    let without = |text: &str| load(&MINIMAL.replace(text, ""), &[]).expect_err("incomplete").to_string();
    assert!(without("model = \"hf:org/student\"").contains("student.model"));
    assert!(without("path = \"prompts.jsonl\"").contains("data.path"));
    assert!(without("max_steps = 10").contains("schedule.max_steps"));
    assert!(without("[teacher]\nkind = \"self\"\nsystem_prompt = \"Be a pirate.\"").contains("teacher"));
    assert!(refusal(&["teacher.kind=model"]).contains("teacher.model"));
    assert!(refusal(&["loss.kind=policy_gradient", "rollout.sampling.temperature=0"]).contains("greedy"));
    assert!(refusal(&["loss.kind=policy_gradient", "loss.lmbda=0.5"]).contains("loss.off_policy"));
}

#[test]
fn losses_map_to_their_definitions() {
    use autograd::ops::Divergence::{Jsd, SkewedReverse, TopK};
    let loss = |set: &[&str]| load(MINIMAL, set).expect("valid").objective.loss;
    assert_eq!(
        loss(&["loss.kind=forward_kl"]),
        LossKind::Divergence { divergence: Jsd { beta: 0.0 }, temperature: 1.0 }
    );
    assert_eq!(loss(&[]), LossKind::Divergence { divergence: Jsd { beta: 1.0 }, temperature: 1.0 });
    assert_eq!(
        loss(&["loss.kind=jsd", "loss.temperature=2.0"]),
        LossKind::Divergence { divergence: Jsd { beta: 0.5 }, temperature: 2.0 }
    );
    assert_eq!(
        loss(&["loss.kind=skewed_reverse_kl"]),
        LossKind::Divergence { divergence: SkewedReverse { alpha: 0.1 }, temperature: 1.0 }
    );
    assert_eq!(
        loss(&["loss.kind=top_k", "loss.top_k=8", "loss.beta=0.0"]),
        LossKind::Divergence { divergence: TopK { k: 8, beta: 0.0 }, temperature: 1.0 }
    );
    assert_eq!(loss(&["loss.kind=policy_gradient"]), LossKind::PolicyGradient { coef: 1.0 });
}

#[test]
fn teacher_kind_is_told_from_its_keys() {
    let text = MINIMAL.replace("kind = \"self\"", "model = \"../teacher\"");
    let recipe = load(&text, &[]).expect("valid");
    assert_eq!(recipe.teacher.expect("a teacher").weights, TeacherWeights::Model("/recipes/../teacher".to_owned()));
    let text = MINIMAL.replace("kind = \"self\"", "model = \"random:shape.json\"");
    let recipe = load(&text, &[]).expect("valid");
    let random = TeacherWeights::Model("random:/recipes/shape.json".to_owned());
    assert_eq!(recipe.teacher.expect("a teacher").weights, random);
    let text = MINIMAL.replace("kind = \"self\"", "path = \"run/latest\"");
    let recipe = load(&text, &[]).expect("valid");
    assert_eq!(recipe.teacher.expect("a teacher").weights, TeacherWeights::Checkpoint("/recipes/run/latest".into()));
}

#[test]
fn epochs_become_steps() {
    assert_eq!(Length::Epochs(2).steps(10, 8), 3);
    assert_eq!(Length::Steps(7).steps(10, 8), 7);
}

#[test]
fn a_url_is_a_teacher() {
    let served = MINIMAL.replace("kind = \"self\"", "url = \"https://teacher:8000/\"");
    let remote = |set: &[&str]| match load(&served, set).expect("valid").teacher.expect("a teacher").weights {
        TeacherWeights::Remote(remote) => remote,
        other => panic!("{other:?}"),
    };
    let default = remote(&["teacher.api_key_file=key.txt"]);
    assert_eq!(
        (default.url.as_str(), default.timeout_s, default.retries, default.concurrency),
        ("https://teacher:8000", 300, 8, 4)
    );
    assert_eq!((default.api, default.rows), (Api::Arle, Some(RemoteRows::Logits(autograd::ops::Precision::Bf16))));
    assert!(default.api_key_file.is_some_and(|path| path.is_absolute()));
    let default = remote(&["teacher.ca_file=ca.pem", "teacher.url=https://teacher:8000/v1"]);
    assert_eq!(default.url, "https://teacher:8000");
    assert!(default.ca_file.is_some_and(|path| path.is_absolute()));
    assert_eq!(remote(&["teacher.top_k=7"]).rows, Some(RemoteRows::Top(7)));
    let refusal = |set: &[&str]| load(&served, set).expect_err("must be refused").to_string();
    for (set, words) in [
        (&["teacher.url=teacher:8000"][..], "`teacher.url`"),
        (&["teacher.url=http://me:sesame@teacher/v1"], "`teacher.url` is \"http://...@teacher/v1\""),
        (&["teacher.url=http://teacher", "teacher.ca_file=ca.pem"], "`teacher.ca_file` has no effect"),
        (&["teacher.url=http://"], "`teacher.url`"),
        (&["teacher.api=grpc"], "arle or openai"),
        (&["teacher.rows=f16"], "bf16 or f32"),
        (&["teacher.top_k=0"], "at least 1"),
        (&["teacher.timeout_s=0"], "at least 1"),
        (&["teacher.concurrency=0"], "at least 1"),
        (&["teacher.model=x", "teacher.kind=remote"], "`teacher.model` has no effect"),
        (&["teacher.api=openai"], "`loss.kind` is a comparison of distributions, must be policy_gradient"),
        (&["teacher.api=openai", "loss.kind=policy_gradient", "teacher.top_k=5"], "`teacher.top_k` has no effect"),
        (&["teacher.api=openai", "loss.kind=policy_gradient", "rollout.sampling.temperature=0.8"], "at temperature 1"),
    ] {
        assert!(refusal(set).contains(words), "{set:?}: {}", refusal(set));
    }
    assert!(self::refusal(&["teacher.retries=3"]).contains("`teacher.retries` has no effect"));
    let again = load(&load(&served, &["teacher.top_k=7"]).expect("valid").to_toml(), &[]).expect("valid again");
    assert_eq!(again.teacher.expect("a teacher").weights, TeacherWeights::Remote(remote(&["teacher.top_k=7"])));
}
