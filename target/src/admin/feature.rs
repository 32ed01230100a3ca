//! Get Features and Set Features (Base 2.1, 5.1.11 and 5.1.25).
//!
//! Invariant: a value that Set Features was told to save is safe before the command completes, and
//! where it cannot be kept nothing changes.

use corebay_core::buffer::Buffer;
use corebay_nvme::spec::{
    command::admin::{GetFeatures, SetFeatures},
    feature::{
        HostBehaviorSupport, NumberOfQueues, Select, Timestamp, capability, fid, host_identifier,
        timestamp_origin, volatile_write_cache,
    },
    status::Status,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    controller::Controller,
    core::Core,
    environment::Environment,
    feature::{self, FeatureChange, Features},
    queue::{Binding, Done},
};

/// The selection of supported capabilities (SEL).
pub const SEL_CAPABILITIES: u8 = 3;

/// Features of controllers with namespaces.
const IO_FEATURES: [u8; 12] = [
    fid::ARBITRATION,
    fid::POWER_MANAGEMENT,
    fid::TEMPERATURE_THRESHOLD,
    fid::ERROR_RECOVERY,
    fid::VOLATILE_WRITE_CACHE,
    fid::NUMBER_OF_QUEUES,
    fid::WRITE_ATOMICITY_NORMAL,
    fid::ASYNC_EVENT_CONFIGURATION,
    fid::TIMESTAMP,
    fid::KEEP_ALIVE_TIMER,
    fid::HOST_BEHAVIOR_SUPPORT,
    fid::HOST_IDENTIFIER,
];

/// Features of discovery controllers.
const DISCOVERY_FEATURES: [u8; 2] = [fid::ASYNC_EVENT_CONFIGURATION, fid::KEEP_ALIVE_TIMER];

/// The bytes of a feature's data structure, if it has one.
pub fn data_bytes(fid: u8) -> Option<usize> {
    match fid {
        fid::TIMESTAMP => Some(size_of::<Timestamp>()),
        fid::HOST_BEHAVIOR_SUPPORT => Some(size_of::<HostBehaviorSupport>()),
        fid::HOST_IDENTIFIER => Some(16),
        _ => None,
    }
}

/// True where Set Features takes the data structure.
pub fn takes_data(fid: u8) -> bool {
    matches!(fid, fid::TIMESTAMP | fid::HOST_BEHAVIOR_SUPPORT)
}

/// True where the command turns the volatile write cache off.
pub fn disables_write_cache(command: &SetFeatures) -> bool {
    command.fid == fid::VOLATILE_WRITE_CACHE && command.cdw11 & volatile_write_cache::ENABLE == 0
}

/// Only subsystems with namespaces say that they save (ONCS).
fn is_saveable<M>(controller: &Controller<M>, fid: u8) -> bool {
    feature::is_saveable(fid) && !controller.subsystem.is_discovery()
}

/// The features of a controller. Where no namespace has a volatile write cache (VWC), there is no
/// feature for one (Base 2.1, 5.1.25.1.4).
pub fn known<M>(controller: &Controller<M>) -> impl Iterator<Item = u8> {
    let subsystem = &controller.subsystem;
    let known: &[u8] = if subsystem.is_discovery() {
        &DISCOVERY_FEATURES
    } else {
        &IO_FEATURES
    };
    let cached = subsystem.has_volatile_cache();
    let missing = move |fid| fid == fid::VOLATILE_WRITE_CACHE && !cached;
    known.iter().copied().filter(move |&fid| !missing(fid))
}

fn check_known<M>(controller: &Controller<M>, fid: u8) -> Result<(), Status> {
    if known(controller).any(|known| known == fid) {
        Ok(())
    } else {
        Err(Status::INVALID_FIELD.with_dnr())
    }
}

/// Get Features.
pub fn get<E: Environment>(
    core: &Core<E>,
    binding: &Binding<E>,
    command: &GetFeatures,
    data: Option<Buffer>,
) -> Done {
    let controller = &binding.controller;
    if let Err(status) = check_known(controller, command.fid) {
        return Done::status(status);
    }
    let saved;
    let features = match Select::from_dword(u32::from(command.sel) << 8) {
        Select::Current => controller.features(),
        Select::Default => Features::default(),
        Select::Saved => {
            saved = controller.subsystem.saved_features();
            saved
        }
        Select::SupportedCapabilities => return capabilities(controller, command.fid),
        Select::Reserved(_) => return Done::status(Status::INVALID_FIELD.with_dnr()),
    };
    match (command.fid, data) {
        (fid::TIMESTAMP, Some(data)) => timestamp(core, controller, data),
        (fid::HOST_BEHAVIOR_SUPPORT, Some(mut data)) => {
            let behavior = controller.host_behavior();
            {
                let mut bytes = data.bytes_mut();
                bytes.fill(0);
                bytes[..behavior.len()].copy_from_slice(&behavior);
            }
            Done::with_data(data)
        }
        (fid::HOST_IDENTIFIER, Some(mut data)) => {
            if command.cdw11 & host_identifier::EXTENDED == 0 {
                // Hosts of fabrics have 128-bit identifiers.
                return Done::status(Status::INVALID_FIELD.with_dnr());
            }
            data.bytes_mut().copy_from_slice(&controller.host_id);
            Done::with_data(data)
        }
        _ => dword(core, controller, &features, command),
    }
}

fn dword<E: Environment>(
    core: &Core<E>,
    controller: &Controller<E::Medium>,
    features: &Features,
    command: &GetFeatures,
) -> Done {
    let value = match command.fid {
        fid::ARBITRATION => features.arbitration,
        fid::POWER_MANAGEMENT => 0,
        fid::TEMPERATURE_THRESHOLD => {
            let kind = (command.cdw11 >> 20 & 3) as usize;
            match features.temperature_threshold.get(kind) {
                Some(kelvins) => u32::from(*kelvins),
                None => return Done::status(Status::INVALID_FIELD.with_dnr()),
            }
        }
        fid::ERROR_RECOVERY => features.error_recovery,
        fid::VOLATILE_WRITE_CACHE => u32::from(features.volatile_write_cache),
        fid::NUMBER_OF_QUEUES => {
            let count = match controller.io_queues_granted() {
                0 => core.limits.io_queues_max,
                granted => granted,
            };
            NumberOfQueues {
                nsq: count - 1,
                ncq: count - 1,
            }
            .to_dword()
        }
        fid::WRITE_ATOMICITY_NORMAL => features.write_atomicity,
        fid::ASYNC_EVENT_CONFIGURATION => features.async_events,
        fid::KEEP_ALIVE_TIMER => controller.keep_alive_ms(),
        _ => return Done::status(Status::INVALID_FIELD.with_dnr()),
    };
    Done::with_result(u64::from(value))
}

fn capabilities<M>(controller: &Controller<M>, fid: u8) -> Done {
    let fixed = matches!(fid, fid::HOST_IDENTIFIER);
    let saveable = if is_saveable(controller, fid) {
        capability::SAVEABLE
    } else {
        0
    };
    let changeable = if fixed { 0 } else { capability::CHANGEABLE };
    Done::with_result(u64::from(saveable | changeable))
}

fn timestamp<E: Environment>(
    core: &Core<E>,
    controller: &Controller<E::Medium>,
    mut data: Buffer,
) -> Done {
    let stamp = match controller.timestamp() {
        Some((set_ms, at)) => {
            let passed = core.reactor.now().since(at).as_millis() as u64;
            Timestamp::new(set_ms.wrapping_add(passed), timestamp_origin::SET_FEATURES)
        }
        None => Timestamp::new(core.environment.wall_clock_ms(), timestamp_origin::RESET),
    };
    data.bytes_mut().copy_from_slice(stamp.as_bytes());
    Done::with_data(data)
}

/// Set Features.
pub async fn set<E: Environment>(
    core: &Core<E>,
    binding: &Binding<E>,
    nsid: u32,
    command: &SetFeatures,
    data: Option<Buffer>,
) -> Done {
    let controller = &binding.controller;
    if let Err(status) = check_known(controller, command.fid) {
        return Done::status(status);
    }
    if command.save && !is_saveable(controller, command.fid) {
        return Done::status(Status::FEATURE_NOT_SAVEABLE.with_dnr());
    }
    if !matches!(nsid, 0 | u32::MAX) && command.fid != fid::ERROR_RECOVERY {
        return Done::status(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr());
    }
    match command.fid {
        fid::NUMBER_OF_QUEUES => number_of_queues(core, controller, command.cdw11),
        fid::KEEP_ALIVE_TIMER => {
            controller.set_keep_alive(command.cdw11, core.reactor.now());
            Done::SUCCESS
        }
        fid::HOST_IDENTIFIER => Done::status(Status::COMMAND_SEQUENCE_ERROR.with_dnr()),
        fid::POWER_MANAGEMENT if command.cdw11 & 0x1f == 0 => Done::SUCCESS,
        fid::TIMESTAMP | fid::HOST_BEHAVIOR_SUPPORT => set_data(core, controller, command, data),
        fid::POWER_MANAGEMENT => Done::status(Status::INVALID_FIELD.with_dnr()),
        _ => change(core, controller, command).await,
    }
}

/// Changes the current value and, where that is asked, the saved one.
async fn change<E: Environment>(
    core: &Core<E>,
    controller: &Controller<E::Medium>,
    command: &SetFeatures,
) -> Done {
    let Some(change) = FeatureChange::new(command.fid, command.cdw11) else {
        return Done::status(Status::INVALID_FIELD.with_dnr());
    };
    if command.save {
        let saving = core.environment.save_feature(&controller.subsystem, change);
        // On the heap, so that the commands of the data path need no larger task slots.
        if Box::pin(saving).await.is_err() {
            return Done::status(Status::INTERNAL_ERROR);
        }
    }
    controller.set_features(|features| change.apply(features));
    Done::SUCCESS
}

fn number_of_queues<E: Environment>(
    core: &Core<E>,
    controller: &Controller<E::Medium>,
    dword: u32,
) -> Done {
    let asked = NumberOfQueues::from_dword(dword);
    if asked.nsq == u16::MAX || asked.ncq == u16::MAX {
        return Done::status(Status::INVALID_FIELD.with_dnr());
    }
    if controller.queues().iter().any(|queue| queue.qid != 0) {
        return Done::status(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    }
    let count = (asked.nsq.max(asked.ncq) + 1).min(core.limits.io_queues_max);
    controller.grant_io_queues(count);
    let granted = NumberOfQueues {
        nsq: count - 1,
        ncq: count - 1,
    };
    Done::with_result(u64::from(granted.to_dword()))
}

fn set_data<E: Environment>(
    core: &Core<E>,
    controller: &Controller<E::Medium>,
    command: &SetFeatures,
    data: Option<Buffer>,
) -> Done {
    let Some(data) = data else {
        return Done::status(Status::INTERNAL_ERROR);
    };
    let bytes = data.bytes();
    if command.fid == fid::TIMESTAMP {
        let Ok((stamp, _)) = Timestamp::read_from_prefix(&bytes) else {
            return Done::status(Status::INTERNAL_ERROR);
        };
        controller.set_timestamp(stamp.time_ms(), core.reactor.now());
        return Done::SUCCESS;
    }
    let mut behavior = [0; 6];
    behavior.copy_from_slice(&bytes[..6]);
    if behavior[0] > 1 {
        return Done::status(Status::INVALID_FIELD.with_dnr());
    }
    controller.set_host_behavior(behavior);
    Done::SUCCESS
}
