//! What can go wrong with a controller as a whole, in words for whoever operates it.

use std::fmt;

use super::device::DeviceError;
use crate::spec::status::Status;

/// A controller could not be brought up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BringUpError {
    /// The seam to the device failed.
    Device(DeviceError),
    /// All registers read as ones: the device is not there, or asleep.
    NotThere,
    /// What CAP says cannot be worked with.
    Capabilities(&'static str),
    /// The controller reported that it has failed (CSTS.CFS).
    FatalStatus,
    /// It did not become ready, or not ready, in the time that it states.
    NotReady {
        /// Whether it should have become ready.
        wanted: bool,
        /// How long was waited.
        waited_ms: u64,
    },
    /// An admin command failed.
    Command {
        /// What was asked.
        what: &'static str,
        /// How it ended.
        why: AdminError,
    },
    /// The function is being reset, and nobody knows for how long: it must not be touched.
    StillResetting,
    /// Less memory was given than the queues need.
    Memory,
    /// It is another drive than before its reset, or works in another way.
    Changed,
}

/// An admin command ended without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminError {
    /// With this status.
    Status(Status),
    /// It did not end in time.
    TimedOut,
    /// The controller was reset meanwhile, or is gone.
    Reset,
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::TimedOut => write!(f, "no answer in time"),
            Self::Reset => write!(f, "the controller was reset"),
        }
    }
}

impl std::error::Error for AdminError {}

impl From<DeviceError> for BringUpError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl fmt::Display for BringUpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(error) => write!(f, "{error}"),
            Self::NotThere => write!(f, "the device does not answer: unplugged, or powered down"),
            Self::Capabilities(what) => write!(f, "the controller {what}"),
            Self::FatalStatus => write!(f, "the controller reports a fatal status (CSTS.CFS)"),
            Self::NotReady { wanted, waited_ms } => write!(
                f,
                "the controller did not become {} within {waited_ms} ms",
                if *wanted { "ready" } else { "idle" }
            ),
            Self::Command { what, why } => write!(f, "{what} failed: {why}"),
            Self::StillResetting => write!(f, "the reset of the function does not end"),
            Self::Memory => write!(f, "there is not enough memory for the drive's queues"),
            Self::Changed => write!(
                f,
                "it came back from its reset as another drive, or with another cache or other limits"
            ),
        }
    }
}

impl std::error::Error for BringUpError {}
