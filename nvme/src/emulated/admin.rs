//! Admin commands of the emulated controller.

use zerocopy::{FromZeros, IntoBytes, little_endian::U16, little_endian::U32, little_endian::U64};

use super::state::{CompletionQueue, NamespaceState, State, SubmissionQueue};
use crate::spec::{
    ascii,
    command::{
        Abort, CreateCompletionQueue, CreateSubmissionQueue, GetFeatures, GetLogPage, Identify,
        SetFeatures, SubmissionEntry, admin,
    },
    completion::CompletionEntry,
    feature::{NumberOfQueues, fid, host_identifier},
    identify::{
        IDENTIFY_BYTES, IdentifyController, IdentifyControllerNvm, IdentifyNamespace,
        NamespaceIdentifier, NamespaceList, cns,
        controller::{cntrltype, ctratt, oacs, oaes, sgls, vwc},
        csi, encode_descriptors,
    },
    log::{ChangedNamespaceList, FirmwareSlotLog, SmartLog, lid},
    status::Status,
};

/// How an admin command ends: at once with dword 0 or a status.
type Outcome = Result<u32, Status>;

impl State {
    /// `None` for a command that ends later.
    pub(super) fn execute_admin(&mut self, entry: &SubmissionEntry) -> Option<Outcome> {
        if self.faults.refuses == Some(entry.opc) {
            return Some(Err(Status::INTERNAL_ERROR));
        }
        Some(match entry.opc {
            admin::IDENTIFY => self.identify(entry),
            admin::GET_LOG_PAGE => self.get_log_page(entry),
            admin::SET_FEATURES => self.set_features(entry),
            admin::GET_FEATURES => self.get_features(entry),
            admin::CREATE_IO_COMPLETION_QUEUE => self.create_cq(entry),
            admin::CREATE_IO_SUBMISSION_QUEUE => self.create_sq(entry),
            admin::DELETE_IO_SUBMISSION_QUEUE => self.delete_sq(entry),
            admin::DELETE_IO_COMPLETION_QUEUE => self.delete_cq(entry),
            admin::ABORT => self.abort(entry),
            admin::DOORBELL_BUFFER_CONFIG if self.options.shadow_doorbells => {
                self.doorbell_buffers = Some(entry.prp());
                Ok(0)
            }
            admin::ASYNC_EVENT_REQUEST if self.event_requests.len() < 4 => {
                self.event_requests.push(entry.cid.get());
                return None;
            }
            admin::ASYNC_EVENT_REQUEST => Err(Status::AER_LIMIT_EXCEEDED),
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        })
    }

    fn give(&mut self, entry: &SubmissionEntry, data: &[u8]) -> Outcome {
        let mut data = data.to_vec();
        if self.rng.once_in(self.faults.garbled) {
            self.rng.fill(&mut data);
        }
        self.put_data(entry, &data).map(|()| 0)
    }

    fn identify(&mut self, entry: &SubmissionEntry) -> Outcome {
        let asked = Identify::from(entry);
        let nsid = entry.nsid.get();
        match asked.cns {
            cns::CONTROLLER => {
                let data = self.identify_controller();
                self.give(entry, data.as_bytes())
            }
            cns::CSI_CONTROLLER if asked.csi == csi::NVM => {
                let mut data = IdentifyControllerNvm::new_zeroed();
                data.wzsl = self.options.zeroes_limit;
                self.give(entry, data.as_bytes())
            }
            cns::NAMESPACE => {
                let data = self.identify_namespace(nsid)?;
                self.give(entry, data.as_bytes())
            }
            cns::ACTIVE_NAMESPACES => {
                let mut data = Box::new(NamespaceList::new_zeroed());
                let all = (1..).zip(&self.namespaces);
                let active = all.filter(|(_, namespace)| namespace.attached);
                data.fill(nsid, active.map(|(nsid, _)| nsid));
                self.give(entry, data.as_bytes())
            }
            cns::NAMESPACE_DESCRIPTORS => {
                self.namespace(nsid)
                    .ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?;
                let mut list = [0; IDENTIFY_BYTES];
                let identifiers = [
                    NamespaceIdentifier::Nguid(nguid(nsid)),
                    NamespaceIdentifier::Csi(csi::NVM),
                ];
                encode_descriptors(&identifiers, &mut list);
                self.give(entry, &list)
            }
            _ => Err(Status::INVALID_FIELD.with_dnr()),
        }
    }

    fn identify_controller(&self) -> Box<IdentifyController> {
        let options = &self.options;
        let mut data = Box::new(IdentifyController::new_zeroed());
        data.vid = U16::new(0x1B36);
        data.sn = ascii::pad(&options.serial);
        data.mn = ascii::pad(&options.model);
        data.fr = ascii::pad("1.0");
        data.mdts = options.mdts;
        data.rtd3e = U32::new(options.rtd3e);
        data.rab = 3;
        data.ver = U32::new(options.version.0);
        data.oaes = U32::new(oaes::NAMESPACE_ATTRIBUTE);
        data.ctratt = U32::new(ctratt::HOST_ID_128);
        data.cntrltype = cntrltype::IO;
        if options.shadow_doorbells {
            data.oacs = U16::new(oacs::DOORBELL_BUFFER);
        }
        data.acl = 3;
        data.aerl = 3;
        data.sqes = 0x66;
        data.cqes = 0x44;
        data.nn = U32::new(self.namespaces.len() as u32);
        data.oncs = U16::new(options.oncs);
        if options.volatile_cache {
            data.vwc = vwc::PRESENT | vwc::FLUSH_ALL_SUPPORTED;
        }
        if options.sgl {
            data.sgls = U32::new(sgls::SUPPORTED);
        }
        data
    }

    fn identify_namespace(&mut self, nsid: u32) -> Result<Box<IdentifyNamespace>, Status> {
        let dlfeat = self.options.dlfeat;
        let mut data = Box::new(IdentifyNamespace::new_zeroed());
        if nsid == 0 || nsid as usize > self.namespaces.len() {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
        }
        let Some(NamespaceState {
            medium,
            metadata_bytes,
            metadata_extended,
            ..
        }) = self.namespace(nsid)
        else {
            // One that exists and is not attached is all zeroes.
            return Ok(data);
        };
        data.nsze = U64::new(medium.blocks);
        data.ncap = data.nsze;
        data.nuse = data.nsze;
        data.dlfeat = dlfeat;
        data.lbaf[0].lbads = medium.block_size.shift() as u8;
        data.lbaf[0].ms = U16::new(*metadata_bytes);
        if *metadata_extended {
            data.flbas = crate::spec::identify::namespace::flbas::METADATA_EXTENDED;
        }
        data.nguid = nguid(nsid);
        Ok(data)
    }

    fn get_log_page(&mut self, entry: &SubmissionEntry) -> Outcome {
        let asked = GetLogPage::from(entry);
        let page = match asked.lid {
            lid::ERROR => vec![0; 64],
            lid::SMART => {
                let mut log = SmartLog::new_zeroed();
                log.composite_temperature = U16::new(300);
                log.available_spare = 100;
                log.as_bytes().to_vec()
            }
            lid::FIRMWARE_SLOT => {
                let mut log = FirmwareSlotLog::new_zeroed();
                log.afi = 1;
                log.frs[0] = ascii::pad("1.0");
                log.as_bytes().to_vec()
            }
            lid::CHANGED_NAMESPACES => {
                let mut log = Box::new(ChangedNamespaceList::new_zeroed());
                let changed = match asked.rae {
                    true => self.changed_namespaces.clone(),
                    false => std::mem::take(&mut self.changed_namespaces),
                };
                log.fill(changed);
                log.as_bytes().to_vec()
            }
            _ => return Err(Status::INVALID_LOG_PAGE.with_dnr()),
        };
        let bytes = usize::try_from(asked.bytes()).unwrap_or(usize::MAX);
        let offset = usize::try_from(asked.offset).unwrap_or(usize::MAX);
        if bytes > 4096 || offset > page.len() {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let mut data = page[offset..].to_vec();
        data.resize(bytes, 0);
        self.give(entry, &data)
    }

    fn set_features(&mut self, entry: &SubmissionEntry) -> Outcome {
        let asked = SetFeatures::from(entry);
        match asked.fid {
            fid::NUMBER_OF_QUEUES => {
                let wanted = NumberOfQueues::from_dword(asked.cdw11);
                let most = self.options.queues.max(1) - 1;
                let given = NumberOfQueues {
                    nsq: wanted.nsq.min(most),
                    ncq: wanted.ncq.min(most),
                };
                Ok(given.to_dword())
            }
            fid::HOST_IDENTIFIER => {
                let extended = asked.cdw11 & host_identifier::EXTENDED != 0;
                let bytes = self.get_data(entry, if extended { 16 } else { 8 })?;
                self.host_identifier[..bytes.len()].copy_from_slice(&bytes);
                Ok(0)
            }
            fid::VOLATILE_WRITE_CACHE if !self.options.volatile_cache => {
                Err(Status::INVALID_FIELD.with_dnr())
            }
            fid::ARBITRATION
            | fid::ERROR_RECOVERY
            | fid::VOLATILE_WRITE_CACHE
            | fid::ASYNC_EVENT_CONFIGURATION
            | fid::WRITE_ATOMICITY_NORMAL => {
                self.features.insert(asked.fid, asked.cdw11);
                Ok(0)
            }
            _ => Err(Status::INVALID_FIELD.with_dnr()),
        }
    }

    fn get_features(&mut self, entry: &SubmissionEntry) -> Outcome {
        let asked = GetFeatures::from(entry);
        match asked.fid {
            fid::VOLATILE_WRITE_CACHE if self.options.volatile_cache => {
                Ok(self.features.get(&asked.fid).copied().unwrap_or(1))
            }
            fid::NUMBER_OF_QUEUES => {
                let most = self.options.queues.max(1) - 1;
                Ok(NumberOfQueues {
                    nsq: most,
                    ncq: most,
                }
                .to_dword())
            }
            fid::ARBITRATION | fid::ERROR_RECOVERY | fid::ASYNC_EVENT_CONFIGURATION => {
                Ok(self.features.get(&asked.fid).copied().unwrap_or(0))
            }
            _ => Err(Status::INVALID_FIELD.with_dnr()),
        }
    }

    fn check_queue(&self, qid: u16, entries: u32, pc: bool, address: u64) -> Result<(), Status> {
        if qid == 0 || qid > self.options.queues {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        if entries < 2 || entries > u32::from(self.options.cap.mqes()) + 1 {
            return Err(Status::INVALID_QUEUE_SIZE.with_dnr());
        }
        if !pc || !address.is_multiple_of(4096) {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        Ok(())
    }

    fn create_cq(&mut self, entry: &SubmissionEntry) -> Outcome {
        let asked = CreateCompletionQueue::from(entry);
        self.check_queue(asked.qid, asked.entries, asked.pc, asked.address)?;
        if self.cqs.contains_key(&asked.qid) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        let queue = CompletionQueue::new(asked.address, asked.entries);
        self.cqs.insert(asked.qid, queue);
        Ok(0)
    }

    fn create_sq(&mut self, entry: &SubmissionEntry) -> Outcome {
        let asked = CreateSubmissionQueue::from(entry);
        self.check_queue(asked.qid, asked.entries, asked.pc, asked.address)?;
        if self.sqs.contains_key(&asked.qid) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        if asked.cqid == 0 || !self.cqs.contains_key(&asked.cqid) {
            return Err(Status::COMPLETION_QUEUE_INVALID.with_dnr());
        }
        let queue = SubmissionQueue::new(asked.address, asked.entries, asked.cqid);
        self.sqs.insert(asked.qid, queue);
        Ok(0)
    }

    fn delete_sq(&mut self, entry: &SubmissionEntry) -> Outcome {
        let qid = entry.cdw10.get() as u16;
        if qid == 0 || self.sqs.remove(&qid).is_none() {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        self.pending.retain(|pending| pending.sqid != qid);
        Ok(0)
    }

    fn delete_cq(&mut self, entry: &SubmissionEntry) -> Outcome {
        let qid = entry.cdw10.get() as u16;
        if self.sqs.values().any(|queue| queue.cqid == qid) {
            return Err(Status::INVALID_QUEUE_DELETION.with_dnr());
        }
        if qid == 0 || self.cqs.remove(&qid).is_none() {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        Ok(0)
    }

    fn abort(&mut self, entry: &SubmissionEntry) -> Outcome {
        self.counters.aborts += 1;
        let asked = Abort::from(entry);
        let found = self
            .pending
            .iter()
            .any(|pending| pending.sqid == asked.sqid && pending.entry.cid.get() == asked.cid);
        if !found || self.faults.deaf_to_abort {
            return Ok(admin::ABORT_NOT_ABORTED);
        }
        // Posting forgets the command.
        let aborted = CompletionEntry::new(asked.cid, Status::ABORT_REQUESTED);
        self.post(asked.sqid, aborted);
        Ok(0)
    }
}

fn nguid(nsid: u32) -> [u8; 16] {
    let mut nguid = *b"emulated\0\0\0\0\0\0\0\0";
    nguid[12..].copy_from_slice(&nsid.to_be_bytes());
    nguid
}
