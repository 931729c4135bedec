//! Stop strings in text that arrives in pieces.

/// Finds the first stop string to be complete, however the text is cut into pieces.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
    /// The stop string is emitted, too.
    included: bool,
    /// Which of `stops` was found.
    found: Option<usize>,
}

/// What one more piece of text leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that is certainly not part of a stop string.
    pub emit: String,
    /// Whether a stop string is complete; what follows is not emitted.
    pub stopped: bool,
}

impl StopMatcher {
    /// Watches for any of `stops`; none of them empty.
    pub fn new(stops: &[String]) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()));
        Self { stops: stops.to_vec(), held: String::new(), stopped: false, included: false, found: None }
    }

    /// Whether the stop string that is found is emitted.
    #[must_use]
    pub fn including(self, included: bool) -> Self {
        Self { included, ..self }
    }

    /// Appends `text`. Of stop strings that end at the same place the longest counts. After a stop nothing
    /// is emitted any more.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome { emit: String::new(), stopped: true };
        }
        self.held.push_str(text);
        let places = self.stops.iter().enumerate();
        let places =
            places.filter_map(|(which, stop)| self.held.find(stop).map(|start| (start + stop.len(), start, which)));
        if let Some((end, start, which)) = places.min() {
            self.found = Some(which);
            self.held.truncate(if self.included { end } else { start });
            self.stopped = true;
            return StopOutcome { emit: std::mem::take(&mut self.held), stopped: true };
        }
        let held = self.held.split_off(self.first_possible_start());
        StopOutcome { emit: std::mem::replace(&mut self.held, held), stopped: false }
    }

    /// Which of the stop strings was found.
    pub fn found(&self) -> Option<usize> {
        self.found
    }

    /// The generation ended otherwise: what was held back is text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the longest suffix begins that some stop string begins with.
    fn first_possible_start(&self) -> usize {
        let begins_stop = |suffix: &str| self.stops.iter().any(|stop| stop.starts_with(suffix));
        (self.held.char_indices().map(|(start, _)| start))
            .find(|&start| begins_stop(&self.held[start..]))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(&stops.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn emit(text: &str) -> StopOutcome {
        StopOutcome { emit: text.into(), stopped: false }
    }

    #[test]
    fn a_possible_beginning_is_held_until_it_is_decided() {
        let mut stop = matcher(&["<|end|>", "\n\n"]);
        assert_eq!(stop.push("one <"), emit("one "));
        assert_eq!(stop.push("|en"), emit(""));
        assert_eq!(stop.push("t\n"), emit("<|ent"));
        assert_eq!(stop.push("x<|e"), emit("\nx"));
        assert_eq!(stop.push("nd|> two"), StopOutcome { emit: String::new(), stopped: true });
        assert_eq!(stop.push("three"), StopOutcome { emit: String::new(), stopped: true });
        assert_eq!((stop.finish(), stop.found()), (String::new(), Some(0)));
    }

    #[test]
    fn text_before_the_stop_is_emitted_and_the_stop_is_not() {
        let mut stop = matcher(&["é!", "é!!"]);
        assert_eq!(stop.push("caf"), emit("caf"));
        assert_eq!(stop.push("é"), emit(""));
        assert_eq!(stop.found(), None);
        assert_eq!(stop.push("s é!!"), StopOutcome { emit: "és ".into(), stopped: true });
        assert_eq!(stop.found(), Some(0), "it was complete first");
    }

    #[test]
    fn a_stop_that_is_included_ends_the_text() {
        let mut stop = matcher(&["é!", "b"]).including(true);
        assert_eq!(stop.push("café"), emit("caf"));
        assert_eq!(stop.push("! and b"), StopOutcome { emit: "é!".into(), stopped: true });
        assert_eq!(stop.push("more"), StopOutcome { emit: String::new(), stopped: true });
    }

    #[test]
    fn an_ending_without_stop_gives_the_held_text_back() {
        let mut stop = matcher(&["aab"]);
        assert_eq!(stop.push("xaaa"), emit("xa"));
        assert_eq!(stop.finish(), "aa");
    }

    #[test]
    fn no_stop_strings_hold_nothing() {
        assert_eq!(matcher(&[]).push("any"), emit("any"));
    }

    /// The definition: read letter by letter, end at the first letter that completes a stop string.
    fn cut(text: &str, stops: &[String]) -> (String, bool) {
        for end in 0..=text.len() {
            let ending = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(longest) = ending.map(String::len).max() {
                return (text[..end - longest].into(), true);
            }
        }
        (text.into(), false)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn pieces_do_not_matter(
            pieces in prop::collection::vec("[ab]{0,4}", 0..8),
            stops in prop::collection::vec("[ab]{1,4}", 0..4),
        ) {
            let mut stop = StopMatcher::new(&stops);
            let (mut text, mut stopped) = (String::new(), false);
            for piece in &pieces {
                let outcome = stop.push(piece);
                text.push_str(&outcome.emit);
                stopped = outcome.stopped;
            }
            text.push_str(&stop.finish());
            prop_assert_eq!((text, stopped), cut(&pieces.concat(), &stops));
        }
    }
}
