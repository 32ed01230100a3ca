//! Why a command or a connection failed: one closed enum.

use std::{fmt, io};

use crate::spec::{fabrics::ConnectInvalid, status::Status, tcp::FatalErrorStatus};

/// What a host can be answered with instead of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The connection could not be made, or was lost. What the command did is unknown.
    Transport(io::ErrorKind),
    /// The controller broke the protocol, so this host ended the connection.
    Protocol(Violation),
    /// The controller says that this host broke the protocol, and ended the connection.
    Terminated {
        /// Fatal Error Status.
        fes: u16,
        /// Fatal Error Information.
        fei: u32,
    },
    /// The controller completed the command with this status, which is not success.
    Status(Status),
    /// The controller refused a Connect command.
    Refused {
        /// The status.
        status: Status,
        /// Dword 0: where the status is Connect Invalid Parameters, the wrong field's place.
        dw0: u32,
    },
    /// No answer came in time; the connection was ended, so that none comes later.
    TimedOut,
    /// The data of a read came with a wrong digest. The connection lives on.
    DataDigest,
    /// A command completed with success and less data than it is defined to give.
    Short {
        /// The bytes that came.
        received: u32,
        /// The bytes that had to come.
        expected: u32,
    },
    /// The controller's answer makes no sense, or it lacks what is needed.
    Controller(&'static str),
    /// The caller asked for what cannot be sent; nothing was sent.
    Invalid(&'static str),
    /// The caller closed the connection or the controller.
    Closed,
}

/// What a controller did against the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The Fatal Error Status that it was told.
    pub fes: FatalErrorStatus,
    /// The Fatal Error Information that it was told: for a header field its offset in bytes.
    pub fei: u32,
    /// What was wrong.
    pub what: &'static str,
}

impl Error {
    /// True where the connection is gone, so that it is unknown what became of the command.
    #[must_use]
    pub fn is_connection_lost(&self) -> bool {
        match self {
            Self::Transport(_) | Self::Protocol(_) | Self::Terminated { .. } | Self::TimedOut => {
                true
            }
            Self::Status(_)
            | Self::Refused { .. }
            | Self::DataDigest
            | Self::Short { .. }
            | Self::Controller(_)
            | Self::Invalid(_)
            | Self::Closed => false,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Transport(error.kind())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(io::ErrorKind::UnexpectedEof) => {
                write!(f, "the controller closed the connection")
            }
            Self::Transport(kind) => write!(f, "the connection failed: {kind}"),
            Self::Protocol(violation) => {
                write!(f, "the controller broke the protocol: {violation}")
            }
            Self::Terminated { fes, fei } => {
                write!(f, "the controller ended the connection: ")?;
                match FatalErrorStatus::from_wire(*fes) {
                    Some(known) => write!(f, "{known}")?,
                    None => write!(f, "reserved fatal error status {fes:02X}h")?,
                }
                write!(f, ", fatal error information {fei:#x}")
            }
            Self::Status(status) => write!(f, "{status}"),
            Self::Refused { status, dw0 } => {
                write!(f, "the controller refused to connect: {status}")?;
                if status.same_as(Status::CONNECT_INVALID_PARAMETERS) {
                    let wrong = ConnectInvalid::from_dw0(*dw0);
                    let of = if wrong.iattr == 0 { "command" } else { "data" };
                    write!(f, ", byte {} of the {of}", wrong.ipo)?;
                }
                Ok(())
            }
            Self::TimedOut => write!(f, "the controller did not answer in time"),
            Self::DataDigest => write!(f, "the data arrived with a wrong digest"),
            Self::Short { received, expected } => write!(
                f,
                "the command succeeded with {received} bytes of data instead of {expected}"
            ),
            Self::Controller(what) | Self::Invalid(what) => write!(f, "{what}"),
            Self::Closed => write!(f, "the connection was closed"),
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fes, self.what)
    }
}
