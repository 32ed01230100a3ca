//! Which commands controllers with namespaces support: the one source of what Identify (ONCS) and the
//! Commands Supported and Effects log page say of them.

use std::sync::Arc;

use corebay_nvme::spec::{
    command::{admin, nvm},
    identify::controller::oncs,
    log::command_effects::{CSUPP, LBCC},
};

use crate::namespace::NamespaceSpec;

/// The admin commands.
pub const ADMIN: [u8; 7] = [
    admin::GET_LOG_PAGE,
    admin::IDENTIFY,
    admin::ABORT,
    admin::SET_FEATURES,
    admin::GET_FEATURES,
    admin::ASYNC_EVENT_REQUEST,
    admin::KEEP_ALIVE,
];

/// An I/O command that is supported.
#[derive(Clone, Copy)]
pub struct IoCommand {
    /// Its opcode.
    pub opcode: u8,
    /// What the Commands Supported and Effects log page says of it.
    pub effects: u32,
    /// Its bit of Optional NVM Command Support; 0 where the command is mandatory.
    pub oncs: u16,
}

const fn reading(opcode: u8, oncs: u16) -> IoCommand {
    IoCommand {
        opcode,
        effects: CSUPP,
        oncs,
    }
}

const fn changing(opcode: u8, oncs: u16) -> IoCommand {
    IoCommand {
        opcode,
        effects: CSUPP | LBCC,
        oncs,
    }
}

const IO: [IoCommand; 9] = [
    reading(nvm::FLUSH, 0),
    changing(nvm::WRITE, 0),
    reading(nvm::READ, 0),
    changing(nvm::WRITE_UNCORRECTABLE, oncs::WRITE_UNCORRECTABLE),
    reading(nvm::COMPARE, oncs::COMPARE),
    changing(nvm::WRITE_ZEROES, oncs::WRITE_ZEROES),
    changing(nvm::DATASET_MANAGEMENT, oncs::DATASET_MANAGEMENT),
    reading(nvm::VERIFY, oncs::VERIFY),
    changing(nvm::COPY, oncs::COPY),
];

/// The I/O commands that at least one of the namespaces knows.
pub fn io<M>(namespaces: &[Arc<NamespaceSpec<M>>]) -> impl Iterator<Item = IoCommand> + use<M> {
    let uncorrectable = namespaces.iter().any(|n| n.info.write_uncorrectable);
    IO.into_iter()
        .filter(move |command| command.opcode != nvm::WRITE_UNCORRECTABLE || uncorrectable)
}
