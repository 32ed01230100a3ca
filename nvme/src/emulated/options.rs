//! What an emulated controller is, and what it does wrong.

use std::time::Duration;

use corebay_core::units::BlockSize;

use crate::spec::{
    identify::controller::oncs,
    property::{CAP_CSS_NVM, Cap, Vs},
};

/// What an emulated controller is like.
#[derive(Clone, Debug)]
pub struct EmulatedOptions {
    /// The CAP register.
    pub cap: Cap,
    /// The VS register.
    pub version: Vs,
    /// The bytes of BAR 0.
    pub bar_bytes: u32,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// MDTS.
    pub mdts: u8,
    /// It has a volatile write cache.
    pub volatile_cache: bool,
    /// It takes SGLs.
    pub sgl: bool,
    /// It has doorbells in memory.
    pub shadow_doorbells: bool,
    /// Optional commands, see [`oncs`].
    pub oncs: u16,
    /// DLFEAT of all namespaces.
    pub dlfeat: u8,
    /// WZSL, DMRSL and their kin: exponents, or blocks. 0 is no limit.
    pub zeroes_limit: u8,
    /// I/O queue pairs that it has.
    pub queues: u16,
    /// The namespaces, from NSID 1 on.
    pub namespaces: Vec<EmulatedNamespace>,
    /// How long a command takes at least and at most.
    pub latency: (Duration, Duration),
    /// How long becoming ready, or not ready, takes.
    pub ready_delay: Duration,
    /// How long a shutdown takes.
    pub shutdown_delay: Duration,
    /// RTD3E, in microseconds.
    pub rtd3e: u32,
    /// The seed of all that is random in it.
    pub seed: u64,
}

/// A namespace of an emulated controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmulatedNamespace {
    /// The size of its blocks.
    pub block_size: BlockSize,
    /// How many there are.
    pub blocks: u64,
    /// Metadata bytes of each block.
    pub metadata_bytes: u16,
    /// They are part of the block as it is transferred: no driver of ours takes such a namespace.
    pub metadata_extended: bool,
}

impl EmulatedNamespace {
    /// One without metadata.
    #[must_use]
    pub const fn new(block_size: BlockSize, blocks: u64) -> Self {
        Self {
            block_size,
            blocks,
            metadata_bytes: 0,
            metadata_extended: false,
        }
    }
}

impl Default for EmulatedOptions {
    fn default() -> Self {
        Self {
            cap: Cap::default()
                .with_mqes(1023)
                .with_cqr(true)
                .with_to(4)
                .with_css(CAP_CSS_NVM),
            version: Vs::V2_1,
            bar_bytes: 0x4000,
            serial: "EMULATED1".into(),
            model: "Emulated NVMe Controller".into(),
            mdts: 5,
            volatile_cache: true,
            sgl: false,
            shadow_doorbells: false,
            oncs: oncs::COMPARE
                | oncs::WRITE_UNCORRECTABLE
                | oncs::DATASET_MANAGEMENT
                | oncs::WRITE_ZEROES
                | oncs::VERIFY,
            dlfeat: 0b1001,
            zeroes_limit: 8,
            queues: 8,
            namespaces: vec![EmulatedNamespace::new(BlockSize::B512, 1 << 19)],
            latency: (Duration::ZERO, Duration::ZERO),
            ready_delay: Duration::from_millis(1),
            shutdown_delay: Duration::ZERO,
            rtd3e: 0,
            seed: 1,
        }
    }
}

/// What an emulated controller does wrong. Chances are once in so many commands; 0 is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmulatedFaults {
    /// A completion comes [`late_by`](Self::late_by) later.
    pub late: u64,
    /// See [`late`](Self::late).
    pub late_by: Duration,
    /// A command is forgotten.
    pub lost: u64,
    /// A completion is posted twice.
    pub duplicate: u64,
    /// A completion names another command, in flight or not.
    pub wrong_cid: u64,
    /// A completion names another queue.
    pub wrong_sqid: u64,
    /// A completion has the old phase tag, so that nobody sees it.
    pub bad_phase: u64,
    /// A command fails with a random status, without being executed.
    pub failing: u64,
    /// The data of an Identify command or log page is random.
    pub garbled: u64,
    /// A register reads as a random value.
    pub wild_registers: u64,
    /// Commands are taken and never completed.
    pub hang: bool,
    /// Admin commands of this opcode fail with a passing Internal Error.
    pub refuses: Option<u8>,
    /// Abort aborts nothing.
    pub deaf_to_abort: bool,
    /// CSTS.RDY stays as it is.
    pub stuck_ready: bool,
    /// The reset of the function takes this long. Who touches a register meanwhile would wait for it.
    pub slow_function_reset: Duration,
    /// Bus Master Enable cannot be cleared, and the function cannot be reset.
    pub stuck_function: bool,
}
