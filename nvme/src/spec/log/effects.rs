//! What the controller supports, told as log pages: log pages, commands and features.

use core::mem::offset_of;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Supported Log Pages log page (LID 00h), Base 2.1 section 5.1.12.1.1.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct SupportedLogPages {
    /// LID supported and effects, by log page identifier; see [`log_support`].
    pub lids: [U32; 256],
}

const _: () = assert!(size_of::<SupportedLogPages>() == 1024);

/// Bits of [`SupportedLogPages::lids`].
pub mod log_support {
    /// The log page is supported.
    pub const LSUPP: u32 = 1 << 0;
    /// Index offsets are supported (IOS).
    pub const IOS: u32 = 1 << 1;
    /// LID specific parameter (LIDSP, bits 31:16).
    pub const LIDSP_MASK: u32 = 0xffff << 16;
}

/// Commands Supported and Effects log page (LID 05h), Base 2.1 section 5.1.12.1.6.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct CommandsSupportedAndEffects {
    /// Admin commands, by opcode; see [`command_effects`].
    pub acs: [U32; 256],
    /// I/O commands, by opcode; see [`command_effects`].
    pub iocs: [U32; 256],
    _reserved2048: [u8; 2048],
}

const _: () = {
    assert!(size_of::<CommandsSupportedAndEffects>() == 4096);
    assert!(offset_of!(CommandsSupportedAndEffects, iocs) == 1024);
};

/// Bits of a command in [`CommandsSupportedAndEffects`].
pub mod command_effects {
    /// The command is supported.
    pub const CSUPP: u32 = 1 << 0;
    /// Logical block content change: it may change user data.
    pub const LBCC: u32 = 1 << 1;
    /// Namespace capability change.
    pub const NCC: u32 = 1 << 2;
    /// Namespace inventory change.
    pub const NIC: u32 = 1 << 3;
    /// Controller capability change.
    pub const CCC: u32 = 1 << 4;
    /// Command submission and execution relaxations (bits 15:14).
    pub const CSER_MASK: u32 = 0b11 << 14;
    /// Command submission and execution (bits 18:16).
    pub const CSE_MASK: u32 = 0b111 << 16;
    /// No restriction on submission or execution.
    pub const CSE_NONE: u32 = 0;
    /// No other command for the same namespace at the same time.
    pub const CSE_NAMESPACE: u32 = 1 << 16;
    /// No other command for any namespace at the same time.
    pub const CSE_ALL: u32 = 2 << 16;
    /// UUID selection is supported.
    pub const USS: u32 = 1 << 19;
    /// Command scope (bits 31:20).
    pub const CSP_MASK: u32 = 0xfff << 20;
    /// Scope: namespace.
    pub const SCOPE_NAMESPACE: u32 = 1 << 20;
    /// Scope: controller.
    pub const SCOPE_CONTROLLER: u32 = 1 << 21;
    /// Scope: NVM set.
    pub const SCOPE_NVM_SET: u32 = 1 << 22;
    /// Scope: endurance group.
    pub const SCOPE_ENDURANCE_GROUP: u32 = 1 << 23;
    /// Scope: domain.
    pub const SCOPE_DOMAIN: u32 = 1 << 24;
    /// Scope: NVM subsystem.
    pub const SCOPE_SUBSYSTEM: u32 = 1 << 25;
}

/// Feature Identifiers Supported and Effects log page (LID 12h), Base 2.1 section 5.1.12.1.18.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct FeatureIdentifiersEffects {
    /// FID supported and effects, by feature identifier; see [`feature_effects`].
    pub fids: [U32; 256],
}

const _: () = assert!(size_of::<FeatureIdentifiersEffects>() == 1024);

/// Bits of a feature in [`FeatureIdentifiersEffects`].
pub mod feature_effects {
    /// The feature is supported.
    pub const FSUPP: u32 = 1 << 0;
    /// User data content change.
    pub const UDCC: u32 = 1 << 1;
    /// Namespace capability change.
    pub const NCC: u32 = 1 << 2;
    /// Namespace inventory change.
    pub const NIC: u32 = 1 << 3;
    /// Controller capability change.
    pub const CCC: u32 = 1 << 4;
    /// UUID selection is supported.
    pub const USS: u32 = 1 << 19;
    /// Feature scope (FSP, bits 31:20).
    pub const FSP_MASK: u32 = 0xfff << 20;
    /// Scope: namespace.
    pub const SCOPE_NAMESPACE: u32 = 1 << 20;
    /// Scope: controller.
    pub const SCOPE_CONTROLLER: u32 = 1 << 21;
    /// Scope: NVM set.
    pub const SCOPE_NVM_SET: u32 = 1 << 22;
    /// Scope: endurance group.
    pub const SCOPE_ENDURANCE_GROUP: u32 = 1 << 23;
    /// Scope: domain.
    pub const SCOPE_DOMAIN: u32 = 1 << 24;
    /// Scope: NVM subsystem.
    pub const SCOPE_SUBSYSTEM: u32 = 1 << 25;
}
