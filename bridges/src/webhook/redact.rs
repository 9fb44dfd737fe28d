//! Secrets are taken out of what is told.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// What stands in the place of a secret.
const HIDDEN: &str = "***";
/// What is shorter is no secret, and would be found everywhere.
const LEAST_BYTES: usize = 4;

/// The texts that nobody may see: a server may repeat them in its answers, and a template in its errors.
#[derive(Clone, Default)]
pub(super) struct Redacted {
    texts: Vec<String>,
}

impl std::fmt::Debug for Redacted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Redacted({})", self.texts.len())
    }
}

impl Redacted {
    /// Adds a secret, in the forms in which it may come back.
    pub(super) fn add(&mut self, secret: &str) {
        if secret.len() < LEAST_BYTES {
            return;
        }
        let json = serde_json::Value::from(secret).to_string();
        let encoded = utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string();
        for text in [secret.to_owned(), json[1..json.len() - 1].to_owned(), encoded] {
            if !self.texts.contains(&text) {
                self.texts.push(text);
            }
        }
        // What holds another one goes first.
        self.texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    }

    /// Adds what stands behind the host of a URL that is secret: as a whole and in its parts.
    pub(super) fn add_path(&mut self, path: &str) {
        self.add(path.trim_matches('/'));
        for part in path.split(['/', '?', '&', '=']).filter(|part| part.len() >= 8) {
            self.add(part);
        }
    }

    /// The text without secrets.
    pub(super) fn hide(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.texts {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), HIDDEN);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_in_every_form() {
        let mut redacted = Redacted::default();
        redacted.add("s3\"cr/et");
        redacted.add("a");
        redacted.add_path("/services/T00/B00/XXXXXXXXXXXX");
        for (text, hidden) in [
            ("token s3\"cr/et is wrong", "token *** is wrong"),
            ("{\"t\": \"s3\\\"cr/et\"}", "{\"t\": \"***\"}"),
            ("?t=s3%22cr%2Fet", "?t=***"),
            ("no such hook: /services/T00/B00/XXXXXXXXXXXX", "no such hook: /***"),
            ("no such hook: XXXXXXXXXXXX", "no such hook: ***"),
            ("a plain text", "a plain text"),
        ] {
            assert_eq!(redacted.hide(text), hidden);
        }
        assert!(!format!("{redacted:?}").contains("s3"));
    }
}
