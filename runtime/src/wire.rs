//! How values of `autograd`, which has no serialization, are written in orders.

/// Ids as they are, times 2; samples of the step before, times 2 plus 1.
pub(crate) mod tokens {
    use autograd::ops::Token;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(tokens: &[Token], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(tokens.iter().map(|&token| match token {
            Token::Known(id) => u64::from(id) << 1,
            Token::Sampled(sample) => u64::from(sample) << 1 | 1,
        }))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Token>, D::Error> {
        let words = Vec::<u64>::deserialize(deserializer)?;
        let token = |word: u64| {
            let value = (word >> 1) as u32;
            if word & 1 == 0 { Token::Known(value) } else { Token::Sampled(value) }
        };
        Ok(words.into_iter().map(token).collect())
    }
}

/// By name.
pub(crate) mod precision {
    use autograd::ops::Precision;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(precision: &Precision, serializer: S) -> Result<S::Ok, S::Error> {
        precision.name().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Precision, D::Error> {
        let name = String::deserialize(deserializer)?;
        Precision::from_name(&name).ok_or_else(|| D::Error::custom(format!("no precision is called {name:?}")))
    }
}

/// Its four constants.
pub(crate) mod adamw {
    use autograd::adamw::AdamW;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(adamw: &AdamW, serializer: S) -> Result<S::Ok, S::Error> {
        let &AdamW { beta1, beta2, eps, weight_decay } = adamw;
        [beta1, beta2, eps, weight_decay].serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AdamW, D::Error> {
        let [beta1, beta2, eps, weight_decay] = <[f64; 4]>::deserialize(deserializer)?;
        Ok(AdamW { beta1, beta2, eps, weight_decay })
    }
}

/// Distributions of a remote teacher.
pub(crate) mod given_rows {
    use std::sync::Arc;

    use autograd::ops::{LogitRows, Precision, TeacherRows, TopRows};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(remote = "LogitRows")]
    struct Logits {
        bytes: Vec<u8>,
        #[serde(with = "super::precision")]
        precision: Precision,
        vocab: usize,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(remote = "TopRows")]
    struct Top {
        k: usize,
        ids: Vec<u32>,
        logprobs: Vec<f32>,
        tail_logprobs: Vec<f32>,
        temperature: f64,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(remote = "TeacherRows")]
    enum Rows {
        Logits(#[serde(with = "Logits")] LogitRows),
        Top(#[serde(with = "Top")] TopRows),
    }

    #[derive(Serialize)]
    struct Borrowed<'a>(#[serde(with = "Rows")] &'a TeacherRows);

    #[derive(Deserialize)]
    struct Owned(#[serde(with = "Rows")] TeacherRows);

    pub(crate) fn serialize<S: Serializer>(rows: &Option<Arc<TeacherRows>>, serializer: S) -> Result<S::Ok, S::Error> {
        rows.as_deref().map(Borrowed).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<TeacherRows>>, D::Error> {
        Ok(Option::<Owned>::deserialize(deserializer)?.map(|rows| Arc::new(rows.0)))
    }
}
