//! Rotary scaling as configuration files spell it. Definitions: transformers' `modeling_rope_utils.py`.

use serde_json::{Value, json};

use super::hf::Object;
use super::{RopeConfig, RopeScaling};
use crate::weights::gguf::{GgufFile, ROPE_FACTORS};
use crate::{Error, Result};

const SUPPORTED: &str = "default, linear, llama3, yarn";

/// Keys of `rope_scaling` / `rope_parameters` that are honoured below.
const KNOWN: [&str; 15] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "finetuned", // a note about training; changes nothing
];

/// `rope_theta` with `rope_scaling` (transformers 4), or both in `rope_parameters` (transformers 5).
pub(super) fn from_hf(config: &Object, max_position: usize) -> Result<RopeConfig> {
    let (old, new) = (config.get("rope_scaling"), config.get("rope_parameters"));
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        return Err(Error::bad_key(config.path, "rope_scaling", old, "it differs from rope_parameters; keep one"));
    }
    let theta = config.f64("rope_theta")?.unwrap_or(10_000.0);
    let Some(parameters) = old.or(new) else {
        return Ok(RopeConfig { theta, scaling: RopeScaling::None });
    };
    let parameters = Object::new(config.path, parameters)?;
    if let Some(key) = parameters.map.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(Error::unsupported(config.path, "rotary parameter", key, KNOWN.join(", ")));
    }
    if let Some(factor) = parameters.f64("partial_rotary_factor")?
        && factor != 1.0
    {
        return Err(Error::unsupported(config.path, "partial_rotary_factor", factor, "1.0"));
    }
    let theta = parameters.f64("rope_theta")?.unwrap_or(theta);
    Ok(RopeConfig { theta, scaling: scaling(&parameters, max_position)? })
}

fn scaling(parameters: &Object, max_position: usize) -> Result<RopeScaling> {
    let number = |key| parameters.required(key, parameters.f64(key)?);
    let original_max_position = parameters.usize("original_max_position_embeddings")?.unwrap_or(max_position);
    let kind = match parameters.str("rope_type")? {
        Some(kind) => Some(kind),
        None => parameters.str("type")?,
    };
    let scaling = match kind.unwrap_or("default") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position,
        },
        "yarn" => yarn(parameters, number("factor")?, original_max_position)?,
        other => return Err(Error::unsupported(parameters.path, "rope_type", other, SUPPORTED)),
    };
    check(parameters, &scaling)?;
    Ok(scaling)
}

fn yarn(parameters: &Object, factor: f64, original_max_position: usize) -> Result<RopeScaling> {
    if parameters.get("truncate").is_some() && !parameters.bool("truncate")? {
        return Err(Error::unsupported(parameters.path, "yarn truncate", false, "true"));
    }
    let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let attention_factor = match (parameters.f64("mscale")?, parameters.f64("mscale_all_dim")?) {
        _ if parameters.get("attention_factor").is_some() => parameters.f64("attention_factor")?,
        (Some(one), Some(all)) if one != 0.0 && all != 0.0 => Some(magnitude(one) / magnitude(all)),
        _ => None,
    };
    // transformers reads 0 as absent here.
    let beta =
        |key, default| -> Result<f64> { Ok(parameters.f64(key)?.filter(|&beta| beta != 0.0).unwrap_or(default)) };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        original_max_position,
        attention_factor,
    })
}

fn check(parameters: &Object, scaling: &RopeScaling) -> Result<()> {
    let (RopeScaling::Linear { factor } | RopeScaling::Llama3 { factor, .. } | RopeScaling::Yarn { factor, .. }) =
        scaling
    else {
        return Ok(());
    };
    if !(factor.is_finite() && *factor >= 1.0) {
        return Err(Error::bad_key(parameters.path, "factor", factor, "a number of at least 1 is needed"));
    }
    if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = scaling
        && !(0.0 < *low_freq_factor && low_freq_factor < high_freq_factor)
    {
        return Err(Error::bad_key(
            parameters.path,
            "low_freq_factor",
            low_freq_factor,
            format!("it must be between 0 and high_freq_factor {high_freq_factor}"),
        ));
    }
    Ok(())
}

/// The value of `rope_scaling` for [`RopeConfig`].
pub(super) fn to_hf(rope: &RopeConfig) -> Value {
    match &rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position,
        }),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_position, attention_factor } => {
            let mut yarn = json!({
                "rope_type": "yarn",
                "factor": factor,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "original_max_position_embeddings": original_max_position,
            });
            if let Some(factor) = attention_factor {
                yarn["attention_factor"] = json!(factor);
            }
            yarn
        }
    }
}

/// From GGUF metadata under `arch`, and the tensor of divisors that stands for Llama 3's scaling.
pub(super) fn from_gguf(file: &GgufFile, arch: &str, head_dim: usize) -> Result<RopeConfig> {
    let theta = file.f64_or(&format!("{arch}.rope.freq_base"), 10_000.0)?;
    let prefix = format!("{arch}.rope.scaling.");
    const KEYS: [&str; 7] =
        ["type", "factor", "original_context_length", "attn_factor", "finetuned", "yarn_beta_fast", "yarn_beta_slow"];
    if let Some(key) = file.keys_under(&prefix).find(|key| !KEYS.contains(key)) {
        return Err(Error::unsupported(file.path(), "rotary parameter", format!("{prefix}{key}"), KEYS.join(", ")));
    }
    let key = |name: &str| format!("{prefix}{name}");
    let kind = if file.get(&key("type")).is_some() { file.str(&key("type"))? } else { "none" };
    let scaling = match kind {
        "none" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: file.f64(&key("factor"))? },
        "yarn" => gguf_yarn(file, key)?,
        other => return Err(Error::unsupported(file.path(), "rotary scaling", other, "none, linear, yarn")),
    };
    let Some(divisors) = file.stored_values(ROPE_FACTORS) else {
        return Ok(RopeConfig { theta, scaling });
    };
    if scaling != RopeScaling::None {
        return Err(Error::unsupported(
            file.path(),
            "rotary scaling",
            format!("{kind} with {ROPE_FACTORS}"),
            "one of the two",
        ));
    }
    match llama3_from_divisors(&divisors, theta, head_dim) {
        Some(scaling) => Ok(RopeConfig { theta, scaling }),
        None => Err(Error::unsupported(file.path(), "divisors in", ROPE_FACTORS, "those of Llama 3 (1, 4, 8192)")),
    }
}

fn gguf_yarn(file: &GgufFile, key: impl Fn(&str) -> String) -> Result<RopeScaling> {
    let factor = file.f64(&key("factor"))?;
    let extra = file.f64_or(&key("attn_factor"), 1.0)?;
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: file.f64_or(&key("yarn_beta_fast"), 32.0)?,
        beta_slow: file.f64_or(&key("yarn_beta_slow"), 1.0)?,
        original_max_position: file.usize(&key("original_context_length"))?,
        attention_factor: (extra != 1.0).then(|| extra * (0.1 * factor.ln() + 1.0)),
    })
}

/// The divisor of every rotary frequency under Llama 3's scaling.
fn llama3_divisors(
    theta: f64,
    head_dim: usize,
    factor: f64,
    (low, high, original): (f64, f64, f64),
) -> impl Iterator<Item = f64> {
    (0..head_dim / 2).map(move |i| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
        let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    })
}

/// Every published Llama 3 has these (low, high, original length); only the factor differs.
const LLAMA3: (f64, f64, f64) = (1.0, 4.0, 8192.0);

/// Recovers the scaling whose divisors these are.
fn llama3_from_divisors(divisors: &[f32], theta: f64, head_dim: usize) -> Option<RopeScaling> {
    if divisors.len() != head_dim / 2 || !divisors.iter().all(|d| d.is_finite()) {
        return None;
    }
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let same = llama3_divisors(theta, head_dim, factor, LLAMA3)
        .zip(divisors)
        .all(|(want, &got)| (want - f64::from(got)).abs() <= 1e-3 * want);
    let (low_freq_factor, high_freq_factor, original) = LLAMA3;
    let scaling =
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position: original as usize };
    match same {
        true if factor == 1.0 => Some(RopeScaling::None),
        true => Some(scaling),
        false => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_divisors_are_recognised_and_others_refused() {
        let divisors: Vec<f32> = llama3_divisors(500_000.0, 128, 32.0, LLAMA3).map(|d| d as f32).collect();
        // Llama 3.2's first and last, as its converter has them.
        assert_eq!((divisors[0], divisors[63]), (1.0, 32.0));
        let RopeScaling::Llama3 { factor, .. } = llama3_from_divisors(&divisors, 500_000.0, 128).unwrap() else {
            panic!()
        };
        assert_eq!(factor, 32.0);
        assert_eq!(llama3_from_divisors(&[1.0; 64], 500_000.0, 128), Some(RopeScaling::None));
        let mut other = divisors.clone();
        other[40] *= 1.5;
        assert_eq!(llama3_from_divisors(&other, 500_000.0, 128), None);
        assert_eq!(llama3_from_divisors(&divisors[1..], 500_000.0, 128), None);
    }
}
