//! Log pages: identifiers and layouts (Base 2.1 section 5.1.12).

mod ana;
mod discovery;
mod effects;
mod health;

pub use ana::{AnaGroupDescriptor, AnaLogHeader, AnaState, ana_lsp};
pub use discovery::{
    DiscoveryLogEntry, DiscoveryLogHeader, adrfam, eflags, sectype, subtype, treq, trtype,
};
pub use effects::{
    CommandsSupportedAndEffects, FeatureIdentifiersEffects, SupportedLogPages, command_effects,
    feature_effects, log_support,
};
pub use health::{
    ChangedNamespaceList, ErrorLogEntry, FirmwareSlotLog, ReservationNotificationLog, SmartLog,
    counter_add, counter_get, critical_warning, reservation_notification,
};

/// Log page identifiers: bits 7:0 of Get Log Page's command dword 10.
pub mod lid {
    /// Supported log pages.
    pub const SUPPORTED_LOG_PAGES: u8 = 0x00;
    /// Error information.
    pub const ERROR: u8 = 0x01;
    /// SMART / health information.
    pub const SMART: u8 = 0x02;
    /// Firmware slot information.
    pub const FIRMWARE_SLOT: u8 = 0x03;
    /// Changed attached namespace list.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands supported and effects.
    pub const COMMAND_EFFECTS: u8 = 0x05;
    /// Device self-test.
    pub const SELF_TEST: u8 = 0x06;
    /// Telemetry host-initiated.
    pub const TELEMETRY_HOST: u8 = 0x07;
    /// Telemetry controller-initiated.
    pub const TELEMETRY_CONTROLLER: u8 = 0x08;
    /// Endurance group information.
    pub const ENDURANCE_GROUP: u8 = 0x09;
    /// Predictable latency per NVM set.
    pub const PREDICTABLE_LATENCY: u8 = 0x0a;
    /// Predictable latency event aggregate.
    pub const PREDICTABLE_LATENCY_AGGREGATE: u8 = 0x0b;
    /// Asymmetric namespace access.
    pub const ANA: u8 = 0x0c;
    /// Persistent event log.
    pub const PERSISTENT_EVENT: u8 = 0x0d;
    /// LBA status information.
    pub const LBA_STATUS: u8 = 0x0e;
    /// Endurance group event aggregate.
    pub const ENDURANCE_GROUP_AGGREGATE: u8 = 0x0f;
    /// Media unit status.
    pub const MEDIA_UNIT_STATUS: u8 = 0x10;
    /// Supported capacity configuration list.
    pub const CAPACITY_CONFIGURATIONS: u8 = 0x11;
    /// Feature identifiers supported and effects.
    pub const FEATURE_EFFECTS: u8 = 0x12;
    /// NVMe-MI commands supported and effects.
    pub const MI_COMMAND_EFFECTS: u8 = 0x13;
    /// Command and feature lockdown.
    pub const LOCKDOWN: u8 = 0x14;
    /// Boot partition.
    pub const BOOT_PARTITION: u8 = 0x15;
    /// Rotational media information.
    pub const ROTATIONAL_MEDIA: u8 = 0x16;
    /// Dispersed namespace participating NVM subsystems.
    pub const DISPERSED_NAMESPACE: u8 = 0x17;
    /// Management address list.
    pub const MANAGEMENT_ADDRESSES: u8 = 0x18;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
    /// Host discovery.
    pub const HOST_DISCOVERY: u8 = 0x71;
    /// AVE discovery.
    pub const AVE_DISCOVERY: u8 = 0x72;
    /// Pull model DDC request.
    pub const PULL_MODEL_REQUEST: u8 = 0x73;
    /// Reservation notification.
    pub const RESERVATION: u8 = 0x80;
    /// Sanitize status.
    pub const SANITIZE: u8 = 0x81;
}
