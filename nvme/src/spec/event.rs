//! Asynchronous events: what completes an Asynchronous Event Request (Base 2.1 section 5.1.2).

use super::log::lid;

/// An asynchronous event as completion dword 0 tells it. Unknown types and infos are carried as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AsyncEvent {
    /// Asynchronous event type (AET, bits 2:0), see [`event_type`].
    pub event_type: u8,
    /// Asynchronous event information (AEI, bits 15:8), see the module of the type.
    pub info: u8,
    /// Log page identifier (LID, bits 23:16): the page whose reading clears the event.
    pub lid: u8,
}

impl AsyncEvent {
    /// Namespaces that are attached to the controller changed; the page is the changed namespace list.
    pub const NAMESPACE_CHANGED: Self =
        Self::notice(notice::NAMESPACE_CHANGED, lid::CHANGED_NAMESPACES);
    /// A firmware activation starts.
    pub const FIRMWARE_ACTIVATION: Self =
        Self::notice(notice::FIRMWARE_ACTIVATION, lid::FIRMWARE_SLOT);
    /// An ANA state or group changed.
    pub const ANA_CHANGE: Self = Self::notice(notice::ANA_CHANGE, lid::ANA);
    /// The discovery log page changed.
    pub const DISCOVERY_LOG_CHANGE: Self =
        Self::notice(notice::DISCOVERY_LOG_CHANGE, lid::DISCOVERY);
    /// A reservation notification is in its log page.
    pub const RESERVATION_LOG: Self = Self {
        event_type: event_type::COMMAND_SET,
        info: command_set::RESERVATION_LOG,
        lid: lid::RESERVATION,
    };

    /// The notice `info`, whose page is `lid`.
    pub const fn notice(info: u8, lid: u8) -> Self {
        Self {
            event_type: event_type::NOTICE,
            info,
            lid,
        }
    }

    /// The SMART / health event `info`.
    pub const fn smart(info: u8) -> Self {
        Self {
            event_type: event_type::SMART,
            info,
            lid: lid::SMART,
        }
    }

    /// The error event `info`.
    pub const fn error(info: u8) -> Self {
        Self {
            event_type: event_type::ERROR,
            info,
            lid: lid::ERROR,
        }
    }

    /// Completion dword 0 of the event.
    pub const fn to_dword(self) -> u32 {
        (self.event_type & event_type::MASK) as u32
            | (self.info as u32) << 8
            | (self.lid as u32) << 16
    }

    /// The event in completion dword 0.
    pub const fn from_dword(dword: u32) -> Self {
        Self {
            event_type: dword as u8 & event_type::MASK,
            info: (dword >> 8) as u8,
            lid: (dword >> 16) as u8,
        }
    }
}

/// Asynchronous event types.
pub mod event_type {
    /// The field, bits 2:0.
    pub const MASK: u8 = 0b111;
    /// Error, see [`error`](super::error).
    pub const ERROR: u8 = 0;
    /// SMART / health status, see [`smart`](super::smart).
    pub const SMART: u8 = 1;
    /// Notice, see [`notice`](super::notice).
    pub const NOTICE: u8 = 2;
    /// Immediate: not cleared by a log page, see [`immediate`](super::immediate).
    pub const IMMEDIATE: u8 = 3;
    /// One-shot, see [`one_shot`](super::one_shot).
    pub const ONE_SHOT: u8 = 4;
    /// I/O command set specific, see [`command_set`](super::command_set).
    pub const COMMAND_SET: u8 = 6;
    /// Vendor specific.
    pub const VENDOR: u8 = 7;
}

/// Error events; their page is the error log, LID 01h.
pub mod error {
    /// Write to an invalid doorbell register.
    pub const INVALID_DOORBELL: u8 = 0x00;
    /// Invalid doorbell write value.
    pub const INVALID_DOORBELL_VALUE: u8 = 0x01;
    /// Diagnostic failure.
    pub const DIAGNOSTIC_FAILURE: u8 = 0x02;
    /// Persistent internal error.
    pub const PERSISTENT_INTERNAL: u8 = 0x03;
    /// Transient internal error.
    pub const TRANSIENT_INTERNAL: u8 = 0x04;
    /// Firmware image load error.
    pub const FIRMWARE_LOAD: u8 = 0x05;
}

/// SMART / health events; their page is the SMART log, LID 02h.
pub mod smart {
    /// NVM subsystem reliability.
    pub const RELIABILITY: u8 = 0x00;
    /// Temperature threshold.
    pub const TEMPERATURE: u8 = 0x01;
    /// Spare below threshold.
    pub const SPARE: u8 = 0x02;
}

/// Notice events.
pub mod notice {
    /// Attached namespace attribute changed (LID 04h).
    pub const NAMESPACE_CHANGED: u8 = 0x00;
    /// Firmware activation starting (LID 03h).
    pub const FIRMWARE_ACTIVATION: u8 = 0x01;
    /// Telemetry log changed (LID 08h).
    pub const TELEMETRY: u8 = 0x02;
    /// Asymmetric namespace access change (LID 0Ch).
    pub const ANA_CHANGE: u8 = 0x03;
    /// Predictable latency event aggregate log change (LID 0Bh).
    pub const PREDICTABLE_LATENCY: u8 = 0x04;
    /// LBA status information alert (LID 0Eh).
    pub const LBA_STATUS: u8 = 0x05;
    /// Endurance group event aggregate log page change (LID 0Fh).
    pub const ENDURANCE_GROUP: u8 = 0x06;
    /// Reachability group change.
    pub const REACHABILITY_GROUP: u8 = 0x07;
    /// Reachability association change.
    pub const REACHABILITY_ASSOCIATION: u8 = 0x08;
    /// Allocated namespace attribute changed.
    pub const ALLOCATED_NAMESPACE_CHANGED: u8 = 0x09;
    /// Zone descriptor changed.
    pub const ZONE_DESCRIPTOR: u8 = 0xef;
    /// Discovery log page change (LID 70h).
    pub const DISCOVERY_LOG_CHANGE: u8 = 0xf0;
    /// Host discovery log page change (LID 71h).
    pub const HOST_DISCOVERY_LOG_CHANGE: u8 = 0xf1;
    /// AVE discovery log page change (LID 72h).
    pub const AVE_DISCOVERY_LOG_CHANGE: u8 = 0xf2;
    /// Pull model DDC request (LID 73h).
    pub const PULL_MODEL_REQUEST: u8 = 0xf3;
}

/// Immediate events, which have no page.
pub mod immediate {
    /// Normal NVM subsystem shutdown.
    pub const NORMAL_SHUTDOWN: u8 = 0x00;
    /// Temperature threshold hysteresis recovery.
    pub const TEMPERATURE_HYSTERESIS: u8 = 0x01;
}

/// One-shot events.
pub mod one_shot {
    /// Controller data queue tail pointer.
    pub const DATA_QUEUE_TAIL: u8 = 0x00;
}

/// Events of the NVM command set.
pub mod command_set {
    /// Reservation log page available (LID 80h).
    pub const RESERVATION_LOG: u8 = 0x00;
    /// Sanitize operation completed (LID 81h).
    pub const SANITIZE_COMPLETED: u8 = 0x01;
    /// Sanitize operation completed with unexpected deallocation (LID 81h).
    pub const SANITIZE_UNEXPECTED_DEALLOCATION: u8 = 0x02;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dwords_as_hosts_expect_them() {
        assert_eq!(AsyncEvent::NAMESPACE_CHANGED.to_dword(), 0x0004_0002);
        assert_eq!(AsyncEvent::ANA_CHANGE.to_dword(), 0x000c_0302);
        assert_eq!(AsyncEvent::DISCOVERY_LOG_CHANGE.to_dword(), 0x0070_f002);
        assert_eq!(AsyncEvent::RESERVATION_LOG.to_dword(), 0x0080_0006);
        assert_eq!(
            AsyncEvent::smart(smart::TEMPERATURE).to_dword(),
            0x0002_0101
        );
    }

    #[test]
    fn parses_what_it_built_and_ignores_reserved_bits() {
        let event = AsyncEvent {
            event_type: event_type::VENDOR,
            info: 0xab,
            lid: 0xcd,
        };
        assert_eq!(AsyncEvent::from_dword(event.to_dword()), event);
        assert_eq!(
            AsyncEvent::from_dword(event.to_dword() | 0xff00_00f8),
            event
        );
    }
}
