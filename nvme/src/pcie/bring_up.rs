//! Bringing a controller up, and up again after a reset (Base, section 3.5.1).
//!
//! Steps: nothing enabled -> admin queue set -> enabled and ready -> identified -> features set ->
//! doorbell buffers -> I/O queues. Each wait has the bound that the controller states, and each
//! failure leaves the device disabled and without a way to memory.

use std::{rc::Rc, sync::Arc, time::Duration};

use corebay_core::{
    dma::{DMA_ALIGN, DmaRegion},
    reactor::Reactor,
};
use zerocopy::FromBytes;

use super::{
    admin::{Admin, Data, ENTRIES as ADMIN_ENTRIES, Page, is_unsupported},
    device::{DmaWindow, Registers},
    error::{AdminError, BringUpError},
    info::{ControllerInfo, Namespace, NamespaceInfo},
    options::DriverOptions,
    ring::{Ring, ShadowDoorbells},
    shared::NAMESPACES_MAX,
};
use crate::spec::{
    command::{
        CreateCompletionQueue, CreateSubmissionQueue, SubmissionEntry,
        admin::{get_features, identify, set_features},
        queues::doorbell_buffer_config,
    },
    feature::{NumberOfQueues, async_event, fid, host_identifier, volatile_write_cache},
    identify::{
        IdentifyController, IdentifyControllerNvm, IdentifyNamespace, NamespaceList, cns,
        controller::oaes, csi, decode_descriptors,
    },
    property::{
        self, Aqa, CAP_CRMS_CRWMS, CAP_CSS_IOCSS, CAP_CSS_NVM, CC_CSS_ALL, CC_CSS_NVM, Cap, Cc,
        Crto, Csts, IOCQES_16, IOSQES_64, Shn, Shst, Vs,
    },
    status::Status,
};

/// The unit of CAP.TO and CRTO.
const READY_UNIT: Duration = Duration::from_millis(500);

/// How often a register is looked at that is waited for.
const REGISTER_INTERVAL: Duration = Duration::from_micros(500);

/// How long a controller may take to shut down that states nothing longer (RTD3E).
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long any controller may take to shut down, whatever it states.
const SHUTDOWN_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// How long any controller may take to become ready, whatever it states: a little more than the most that
/// CAP.TO can.
const READY_TIMEOUT_MAX: Duration = Duration::from_secs(130);

/// What the driver needs of a controller that CAP says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) dstrd: u8,
    /// The most entries of an I/O queue, at least 2.
    pub(super) entries_max: u32,
    /// The I/O queue pairs whose doorbells lie in BAR 0.
    pub(super) queues_max: u32,
    ready_timeout: Duration,
    css: u8,
    /// What VS says, always.
    version: u32,
}

impl Capabilities {
    pub(super) fn read<R: Registers>(registers: &R) -> Result<Self, BringUpError> {
        let bits = registers.read64(property::CAP);
        if bits == u64::MAX {
            return Err(BringUpError::NotThere);
        }
        let cap = Cap(bits);
        if cap.mpsmin() > 0 {
            return Err(BringUpError::Capabilities(
                "needs memory pages larger than 4 KiB (CAP.MPSMIN)",
            ));
        }
        if cap.mqes() == 0 {
            return Err(BringUpError::Capabilities(
                "has queues of one entry (CAP.MQES)",
            ));
        }
        let css = match cap.css() {
            css if css & CAP_CSS_NVM != 0 => CC_CSS_NVM,
            css if css & CAP_CSS_IOCSS != 0 => CC_CSS_ALL,
            _ => {
                return Err(BringUpError::Capabilities(
                    "has no NVM command set (CAP.CSS)",
                ));
            }
        };
        let doorbells = registers.bytes().saturating_sub(property::SQ0TDBL) / (8 << cap.dstrd());
        if doorbells < 2 {
            return Err(BringUpError::Capabilities(
                "has no doorbells of I/O queues in BAR 0 (CAP.DSTRD)",
            ));
        }
        let mut units = u32::from(cap.to());
        if cap.crms() & CAP_CRMS_CRWMS != 0 {
            let crto = Crto(registers.read32(property::CRTO));
            units = units.max(u32::from(crto.crwmt()));
        }
        Ok(Self {
            dstrd: cap.dstrd(),
            entries_max: u32::from(cap.mqes()) + 1,
            queues_max: doorbells - 1,
            ready_timeout: (READY_UNIT * units.max(1)).min(READY_TIMEOUT_MAX),
            css,
            version: registers.read32(property::VS),
        })
    }
}

/// A controller's registers and its admin queue: what bringing it up takes.
pub(super) struct Bringer<R: Registers> {
    pub(super) registers: R,
    pub(super) reactor: Reactor,
    pub(super) admin: Rc<Admin<R>>,
    pub(super) capabilities: Capabilities,
    pub(super) options: DriverOptions,
    pub(super) window: DmaWindow,
    pub(super) shadow: Option<Arc<ShadowDoorbells>>,
}

impl<R: Registers> Drop for Bringer<R> {
    fn drop(&mut self) {
        self.admin.end();
    }
}

impl<R: Registers> Bringer<R> {
    /// A bringer over the first part of `memory`.
    pub(super) fn new(
        registers: R,
        reactor: &Reactor,
        capabilities: Capabilities,
        options: DriverOptions,
        memory: &mut DmaRegion,
        window: DmaWindow,
    ) -> Result<Self, BringUpError> {
        let (ring_bytes, page_bytes) = Admin::<R>::bytes();
        let mut take = |bytes| memory.split_off(bytes).ok_or(BringUpError::Memory);
        let ring = Ring::new(
            registers.clone(),
            0,
            capabilities.dstrd,
            ADMIN_ENTRIES,
            take(ring_bytes)?,
            None,
        );
        let pages = take(page_bytes)?;
        let shadow = match options.shadow_doorbells {
            true => ShadowDoorbells::new(take(2 * DMA_ALIGN)?).map(Arc::new),
            false => None,
        };
        Ok(Self {
            admin: Admin::new(ring, pages, window, options.admin_timeout, reactor),
            registers,
            reactor: reactor.clone(),
            capabilities,
            options,
            window,
            shadow,
        })
    }

    /// False once the registers are no longer the controller's: VS never changes, and reads as ones (or
    /// on some machines as zeroes) where the device was pulled out.
    pub(super) fn answers(&self) -> bool {
        let csts = self.registers.read32(property::CSTS);
        csts != u32::MAX && self.registers.read32(property::VS) == self.capabilities.version
    }

    /// Waits until CSTS.RDY is as wanted.
    async fn wait_ready(&self, wanted: bool) -> Result<(), BringUpError> {
        let began = self.reactor.now();
        loop {
            let csts = Csts(self.registers.read32(property::CSTS));
            if !self.answers() {
                return Err(BringUpError::NotThere);
            }
            if csts.rdy() == wanted {
                return Ok(());
            }
            if wanted && csts.cfs() {
                return Err(BringUpError::FatalStatus);
            }
            let waited = self.reactor.now().since(began);
            if waited >= self.capabilities.ready_timeout {
                return Err(BringUpError::NotReady {
                    wanted,
                    waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
                });
            }
            self.reactor.sleep(REGISTER_INTERVAL).await;
        }
    }

    /// Disables the controller. Afterwards it reaches no memory.
    pub(super) async fn disable(&self) -> Result<(), BringUpError> {
        self.admin.close();
        let cc = Cc(self.registers.read32(property::CC));
        let cc = cc.with_en(false).with_shn(Shn::None);
        self.registers.write32(property::CC, cc.0);
        self.wait_ready(false).await
    }

    /// Enables the controller; it is disabled.
    pub(super) async fn enable(&self) -> Result<(), BringUpError> {
        let [asq, acq] = self.admin.addresses().ok_or(BringUpError::Memory)?;
        self.admin.open();
        let aqa = Aqa::default()
            .with_asqs(ADMIN_ENTRIES - 1)
            .with_acqs(ADMIN_ENTRIES - 1);
        self.registers.write32(property::AQA, aqa.0);
        self.registers.write64(property::ASQ, asq);
        self.registers.write64(property::ACQ, acq);
        let cc = Cc::default()
            .with_css(self.capabilities.css)
            .with_iosqes(IOSQES_64)
            .with_iocqes(IOCQES_16)
            .with_en(true);
        self.registers.write32(property::CC, cc.0);
        self.wait_ready(true).await
    }

    /// Lets the controller write its cache and come to rest.
    pub(super) async fn shut_down(&self, info: &ControllerInfo) -> Result<(), BringUpError> {
        let timeout = Duration::from_micros(info.rtd3e.into());
        let timeout = timeout.clamp(SHUTDOWN_TIMEOUT, SHUTDOWN_TIMEOUT_MAX);
        let cc = Cc(self.registers.read32(property::CC));
        let cc = cc.with_shn(Shn::Normal);
        self.registers.write32(property::CC, cc.0);
        let began = self.reactor.now();
        loop {
            let csts = Csts(self.registers.read32(property::CSTS));
            if !self.answers() {
                return Err(BringUpError::NotThere);
            }
            if csts.shst() == Shst::Complete {
                return Ok(());
            }
            let waited = self.reactor.now().since(began);
            if waited >= timeout {
                return Err(BringUpError::NotReady {
                    wanted: false,
                    waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
                });
            }
            self.reactor.sleep(REGISTER_INTERVAL).await;
        }
    }

    async fn must(
        &self,
        what: &'static str,
        entry: SubmissionEntry,
        data: Data<'_>,
    ) -> Result<super::admin::Reply, BringUpError> {
        let outcome = self.admin.run(entry, data).await;
        outcome.map_err(|why| BringUpError::Command { what, why })
    }

    /// `None` where the controller does not know what is asked.
    async fn may(
        &self,
        what: &'static str,
        entry: SubmissionEntry,
        data: Data<'_>,
    ) -> Result<Option<super::admin::Reply>, BringUpError> {
        match self.admin.run(entry, data).await {
            Ok(reply) => Ok(Some(reply)),
            Err(why) if is_unsupported(why) => Ok(None),
            Err(AdminError::Status(status)) => {
                tracing::warn!(%status, "{what} failed");
                Ok(None)
            }
            Err(why) => Err(BringUpError::Command { what, why }),
        }
    }

    /// Asks the controller who it is, and what it can do.
    pub(super) async fn identify(&self) -> Result<ControllerInfo, BringUpError> {
        let version = Vs(self.registers.read32(property::VS));
        let asked = identify(cns::CONTROLLER, 0, 0);
        let reply = self.must("Identify Controller", asked, Data::FromDevice);
        let page = page_of(reply.await?)?;
        let controller = parse::<IdentifyController>(&page);
        let sizes = (controller.sqes & 0xF, controller.cqes & 0xF);
        if sizes != (IOSQES_64, IOCQES_16) {
            return Err(BringUpError::Capabilities(
                "needs queue entries of other sizes than 64 and 16 bytes",
            ));
        }
        let mut info = ControllerInfo::parse(controller, version);
        if version >= Vs::V2_0 {
            let asked = identify(cns::CSI_CONTROLLER, 0, csi::NVM);
            let reply = self.may("Identify Controller (NVM)", asked, Data::FromDevice);
            if let Some(page) = reply.await?.and_then(|reply| reply.page) {
                info.set_limits(parse::<IdentifyControllerNvm>(&page));
            }
        }
        if info.volatile_cache {
            let asked = get_features(fid::VOLATILE_WRITE_CACHE, 0, 0, 0);
            let reply = self.may("Get Features (Volatile Write Cache)", asked, Data::None);
            // A controller that has a cache and does not say whether it is on is taken to use it.
            info.volatile_cache = reply
                .await?
                .is_none_or(|reply| reply.entry.dw0.get() & volatile_write_cache::ENABLE != 0);
        }
        Ok(info)
    }

    /// Looks at all active namespaces. One that cannot be looked at is left out.
    pub(super) async fn namespaces(
        &self,
        info: &ControllerInfo,
    ) -> Result<Vec<Namespace>, BringUpError> {
        let mut namespaces = Vec::new();
        for nsid in self.active_namespaces().await? {
            match self.namespace(nsid, info).await {
                Ok(Some(state)) => namespaces.push(Namespace { nsid, state }),
                Ok(None) => {}
                Err(BringUpError::Command {
                    what,
                    why: AdminError::Status(status),
                }) => tracing::warn!(nsid, %status, "{what} failed: the namespace is not used"),
                Err(why) => return Err(why),
            }
        }
        Ok(namespaces)
    }

    /// The identifiers of all active namespaces.
    pub(super) async fn active_namespaces(&self) -> Result<Vec<u32>, BringUpError> {
        let mut nsids = Vec::new();
        let mut after = 0;
        loop {
            let asked = identify(cns::ACTIVE_NAMESPACES, after, 0);
            let reply = self.must("Identify (active namespaces)", asked, Data::FromDevice);
            let page = page_of(reply.await?)?;
            let list = parse::<NamespaceList>(&page);
            let mut full = true;
            for nsid in list.iter() {
                // What does not ascend is no list.
                if nsid <= after || nsids.len() == NAMESPACES_MAX {
                    full = false;
                    break;
                }
                after = nsid;
                nsids.push(nsid);
            }
            if !full || list.iter().count() < NamespaceList::CAPACITY {
                return Ok(nsids);
            }
        }
    }

    /// What the controller says of a namespace; `None` for one that is not there.
    pub(super) async fn namespace(
        &self,
        nsid: u32,
        info: &ControllerInfo,
    ) -> Result<Option<Result<Arc<NamespaceInfo>, super::Refusal>>, BringUpError> {
        let Some(page) = self.identify_namespace(nsid).await? else {
            return Ok(None);
        };
        let mut descriptors = None;
        if info.version >= Vs::V1_3 {
            let asked = identify(cns::NAMESPACE_DESCRIPTORS, nsid, 0);
            match self.admin.run(asked, Data::FromDevice).await {
                Ok(reply) => descriptors = reply.page,
                Err(why) if is_unsupported(why) => {}
                // Some controllers have none and say so in their own way. What may pass is asked again:
                // without its names, a namespace would be taken for another one.
                Err(AdminError::Status(status)) if status.dnr() => {}
                Err(why) => {
                    let what = "Identify (descriptors)";
                    return Err(BringUpError::Command { what, why });
                }
            }
        }
        let list = descriptors.as_ref().map_or(&[][..], |page| &page[..]);
        let parsed = NamespaceInfo::parse(
            nsid,
            parse::<IdentifyNamespace>(&page),
            decode_descriptors(list),
            info,
        );
        Ok(Some(parsed.map(Arc::new)))
    }

    /// What Identify Namespace gives; `None` for one that is not there.
    async fn identify_namespace(&self, nsid: u32) -> Result<Option<Page>, BringUpError> {
        let asked = identify(cns::NAMESPACE, nsid, 0);
        match self.admin.run(asked, Data::FromDevice).await {
            Ok(reply) => Ok(reply.page),
            Err(AdminError::Status(status))
                if status.same_as(Status::INVALID_NAMESPACE_OR_FORMAT) =>
            {
                Ok(None)
            }
            Err(why) => {
                let what = "Identify Namespace";
                Err(BringUpError::Command { what, why })
            }
        }
    }

    /// Sets the features that matter, and the doorbell buffers; how many I/O queue pairs there may
    /// be.
    pub(super) async fn set_features(&self, info: &ControllerInfo) -> Result<u32, BringUpError> {
        let wanted = u32::from(self.options.queues.max(1)).min(self.capabilities.queues_max);
        let asked = NumberOfQueues {
            nsq: (wanted - 1) as u16,
            ncq: (wanted - 1) as u16,
        };
        let asked = set_features(fid::NUMBER_OF_QUEUES, 0, asked.to_dword());
        let reply = self.must("Set Features (Number of Queues)", asked, Data::None);
        let given = NumberOfQueues::from_dword(reply.await?.entry.dw0.get());
        let queues = wanted.min(u32::from(given.nsq.min(given.ncq)) + 1);

        let mut identifier = self.options.host_identifier;
        let (extended, len) = match info.host_id_128 {
            true => (host_identifier::EXTENDED, 16),
            false => (0, 8),
        };
        if !info.host_id_128 {
            // What is shorter keeps as much of it as there is room for.
            identifier.copy_within(8.., 0);
        }
        if identifier != [0; 16] {
            let asked = set_features(fid::HOST_IDENTIFIER, 0, extended);
            let data = Data::ToDevice(&identifier[..len]);
            self.may("Set Features (Host Identifier)", asked, data)
                .await?;
        }
        let events = async_event::SMART_MASK & 0x1F
            | info.oaes & (oaes::NAMESPACE_ATTRIBUTE | oaes::FIRMWARE_ACTIVATION);
        let asked = set_features(fid::ASYNC_EVENT_CONFIGURATION, 0, events);
        self.may("Set Features (Asynchronous Events)", asked, Data::None)
            .await?;
        // Queues take turns (round robin), as all cores are alike: a queue of higher priority would only
        // let one core starve the others. How much a turn is, the controller knows best.
        let asked = set_features(fid::ARBITRATION, 0, u32::from(info.arbitration_burst));
        self.may("Set Features (Arbitration)", asked, Data::None)
            .await?;
        self.configure_doorbells(info).await?;
        Ok(queues)
    }

    async fn configure_doorbells(&self, info: &ControllerInfo) -> Result<(), BringUpError> {
        let Some(shadow) = self.shadow.as_ref().filter(|_| info.doorbell_buffer) else {
            return Ok(());
        };
        shadow.clear();
        let [doorbells, events] = shadow.addresses();
        let translate = |at| self.window.translate(at, DMA_ALIGN);
        let (Some(doorbells), Some(events)) = (translate(doorbells), translate(events)) else {
            return Err(BringUpError::Memory);
        };
        // A controller that announces it and then refuses would be driven by doorbells that it does
        // not look at.
        let asked = doorbell_buffer_config(doorbells, events);
        self.must("Doorbell Buffer Config", asked, Data::None)
            .await
            .map(|_| ())
    }

    /// Makes an I/O queue pair over rings at these addresses of ours.
    pub(super) async fn create_queue(
        &self,
        qid: u16,
        entries: u16,
        [sq, cq]: [usize; 2],
    ) -> Result<(), BringUpError> {
        let translate = |at| self.window.translate(at, DMA_ALIGN);
        let (Some(sq), Some(cq)) = (translate(sq), translate(cq)) else {
            return Err(BringUpError::Memory);
        };
        let asked = CreateCompletionQueue {
            qid,
            entries: entries.into(),
            pc: true,
            ien: false,
            iv: 0,
            address: cq,
        };
        self.must("Create I/O Completion Queue", asked.to_entry(), Data::None)
            .await?;
        let asked = CreateSubmissionQueue {
            qid,
            entries: entries.into(),
            pc: true,
            qprio: 0,
            cqid: qid,
            address: sq,
        };
        self.must("Create I/O Submission Queue", asked.to_entry(), Data::None)
            .await
            .map(|_| ())
    }
}

fn page_of(reply: super::admin::Reply) -> Result<Page, BringUpError> {
    reply.page.ok_or(BringUpError::Command {
        what: "Identify",
        why: AdminError::Reset,
    })
}

/// A structure of a page: every bit pattern is one.
pub(super) fn parse<T>(page: &Page) -> &T
where
    T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
{
    let (structure, _) = T::ref_from_prefix(&page[..]).expect("a page holds every structure");
    structure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Stating {
        cap: Cap,
        crto: u32,
    }

    impl Registers for Stating {
        fn bytes(&self) -> u32 {
            0x4000
        }

        fn read32(&self, at: u32) -> u32 {
            match at {
                property::CAP => self.cap.0 as u32,
                at if at == property::CAP + 4 => (self.cap.0 >> 32) as u32,
                property::CRTO => self.crto,
                _ => 0,
            }
        }

        fn write32(&self, _at: u32, _value: u32) {}
    }

    #[test]
    fn a_stated_ready_timeout_counts_up_to_a_bound() {
        let cap = Cap::default().with_mqes(15).with_css(CAP_CSS_NVM);
        let independent = Cap(cap.0 | u64::from(CAP_CRMS_CRWMS) << 59);
        assert_eq!(independent.crms(), CAP_CRMS_CRWMS);
        for (cap, crto, seconds) in [
            (cap.with_to(40), 0xFFFF, 20),
            (cap.with_to(255), 0, 127),
            (independent, 60, 30),
            (independent, 0xFFFF, 130),
        ] {
            let read = Capabilities::read(&Stating { cap, crto }).unwrap();
            assert_eq!(read.ready_timeout.as_secs(), seconds);
        }
    }
}
