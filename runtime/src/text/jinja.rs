//! Templates that other people wrote: compiled and rendered with a known stack, a number of steps and bytes, and a time.

mod bounds;
mod environment;
mod source;
mod values;

use std::sync::Arc;

use minijinja::{Environment, ErrorKind, Value};

pub(super) use environment::transformers;
pub(super) const TIME_LIMIT: std::time::Duration = bounds::TIME_LIMIT;
pub(super) use values::{Arguments, TextParts, WHOLE_LIST};

/// Bytes of a template, at most. The longest that models have are some ten thousand.
const LONGEST: usize = 256 << 10;

/// Steps of one rendering, each of which stands for 64 bytes of text, too. A message takes some hundred.
const FUEL: u64 = 2_000_000;

/// Steps that a long conversation adds, at most.
const MORE_FUEL: u64 = 6_000_000;

/// Why there is no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template, or a value that it was given, is refused.
    #[error("{0}")]
    Refused(String),
    /// It takes more than it may.
    #[error("too much work: {0}")]
    Excess(String),
}

/// Compiled templates of one environment.
#[derive(Debug, Clone)]
pub struct Templates {
    environment: Arc<Environment<'static>>,
}

impl Templates {
    /// Compiles templates, each with its name.
    ///
    /// # Errors
    /// One that is no template, or too long.
    pub fn new(
        mut environment: Environment<'static>,
        sources: Vec<(&'static str, String)>,
    ) -> Result<Self, TemplateError> {
        for (name, source) in &sources {
            if source.len() > LONGEST {
                let size = source.len();
                return Err(TemplateError::Excess(format!("{name} has {size} bytes; at most {LONGEST} are compiled")));
            }
        }
        environment.add_filter(environment::STORABLE, environment::storable);
        environment.set_fuel(Some(FUEL));
        let compile = move || {
            for (name, source) in sources {
                environment.add_template_owned(name, source::prepare(&source)).map_err(explain)?;
            }
            Ok(Self { environment: Arc::new(environment) })
        };
        bounds::run(compile).map_err(TemplateError::Excess)?
    }

    /// Renders a template. `variables` makes what it is given, which is about `bytes` long.
    ///
    /// # Errors
    /// What the template refuses or cannot use, and one that has no end.
    pub fn render(
        &self,
        name: &'static str,
        bytes: usize,
        variables: impl FnOnce() -> Value + Send + 'static,
    ) -> Result<String, TemplateError> {
        let mut environment = (*self.environment).clone();
        environment.set_fuel(Some(FUEL + MORE_FUEL.min(bytes as u64)));
        let render = move || environment.get_template(name).and_then(|t| t.render(variables())).map_err(explain);
        bounds::run(render).map_err(TemplateError::Excess)?
    }
}

fn explain(error: minijinja::Error) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
        return TemplateError::Excess(format!(
            "more than {FUEL} steps of {} bytes each{line}; it has no end, or makes too much text",
            64
        ));
    }
    TemplateError::Refused(error.to_string())
}
