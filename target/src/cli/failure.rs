//! What a command of the tools failed with: a message, and how to mend it.

use std::{fmt, process::ExitCode};

use serde_json::{Value, json};

use super::Format;

/// Why a command failed. Printed as two lines: what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    message: String,
    help: String,
    /// What an appliance calls it: its code, and its kind in a word.
    said: Option<(i64, String)>,
}

impl Failure {
    /// A failure; `help` says how to mend it, or is empty where nobody knows.
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: help.into(),
            said: None,
        }
    }

    /// What an appliance refused, by the error that it answered with; `None` where that is none.
    pub fn answered(error: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (message, data) = (error["message"].as_str()?, &error["data"]);
        Some(Self {
            message: message.to_owned(),
            help: text(&data["help"]),
            said: Some((error["code"].as_i64()?, text(&data["kind"]))),
        })
    }

    /// The same failure, of this thing.
    pub fn of(self, what: &str) -> Self {
        Self {
            message: format!("{what}: {}", self.message),
            ..self
        }
    }

    /// All of them as one; `None` where there are none.
    pub fn all(failures: Vec<Self>) -> Option<Self> {
        let mut failures = failures.into_iter();
        let first = failures.next()?;
        Some(failures.fold(first, |mut all, next| {
            all.message += &format!("\n{}", next.message);
            if all.help.is_empty() {
                all.help = next.help;
            }
            all
        }))
    }

    /// Prints it, as results are asked for; gives the exit status.
    pub(super) fn report_as(&self, format: Format, command: &str) -> ExitCode {
        if format == Format::Text {
            return self.report(command);
        }
        eprintln!("{}", self.as_json());
        ExitCode::FAILURE
    }

    /// The code and the kind are null where no appliance has answered.
    fn as_json(&self) -> Value {
        let said = self.said.as_ref();
        let help = Some(&self.help).filter(|help| !help.is_empty());
        json!({
            "error": {
                "code": said.map(|(code, _)| code),
                "kind": said.map(|(_, kind)| kind),
                "message": self.message,
                "help": help,
            },
        })
    }

    /// Prints it for people; gives the exit status.
    pub fn report(&self, command: &str) -> ExitCode {
        eprintln!("corebay {command}: {self}");
        ExitCode::FAILURE
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if !self.help.is_empty() {
            write!(f, "\n  help: {}", self.help)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}
