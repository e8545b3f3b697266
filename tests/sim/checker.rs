//! What must hold, by the specification and from outside: what is committed is found from what
//! stands on disks, and not from what a replica says.
//!
//! An entry is committed as soon as a quorum of those who are counted for it has it, or a later one
//! of its epoch, on stable storage, with no higher epoch promised there. That may be before
//! anybody knows.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::entry::{Entry, Point};
use crate::ids::{Digest, Epoch, HistoryId, Seq, Tid};
use crate::replica::members::{Members, Voter};
use crate::replica::message::{Content, Position};
use crate::replica::settings::{Change, Kind, Settings};
use crate::store::change_of;

/// What is wrong, with the name of what should hold.
pub(crate) type Checked = Result<(), String>;

/// Where somebody's log is: of a lineage, on a disk.
pub(crate) type Place = (HistoryId, Voter);

/// Judges a run.
#[derive(Default)]
pub(crate) struct Checker {
    /// All entries that ever were in a log.
    entries: BTreeMap<Digest, Known>,
    lineages: BTreeMap<HistoryId, Lineage>,
    /// What would be left without power. Disks that are gone stay as they were.
    stable: BTreeMap<Place, NodeLog>,
    /// What running processes have said is in their logs.
    running: BTreeMap<Place, NodeLog>,
    /// What was found to be committed since it was asked last.
    fresh: Vec<(HistoryId, Epoch, Entry)>,
    /// Who has proposed in an epoch.
    offices: BTreeMap<(HistoryId, Epoch), Office>,
    /// What arbiters had on record in an epoch that they had promised, and no higher one.
    records: BTreeMap<(Place, Epoch), Seq>,
    /// Bodies of finishes that were said to be lost.
    lost: BTreeSet<Digest>,
}

struct Known {
    entry: Entry,
    /// As of it.
    settings: Rc<Settings>,
    /// The last entry that said who is counted.
    regime: Position,
}

/// One history of a database.
struct Lineage {
    /// In front of the first entry.
    start: Point,
    settings: Rc<Settings>,
    /// What is committed, and in which epoch that came to be so.
    committed: Vec<(Digest, Epoch)>,
    /// Who has what of an epoch: the last entry.
    held: BTreeMap<Epoch, BTreeMap<Voter, Point>>,
    last_tid: Tid,
    /// What is in front of `start`.
    inherited: Vec<Entry>,
}

/// A log, as far as a journal goes back.
#[derive(Clone, Default)]
pub(crate) struct NodeLog {
    /// In front of it.
    pub(crate) base: Option<Point>,
    pub(crate) digests: Vec<Digest>,
    pub(crate) promised: Epoch,
    /// What an arbiter has on record.
    pub(crate) record: Option<(Position, Members)>,
}

struct Office {
    who: Voter,
    process: u64,
    /// The end of its log when it took office.
    before: Digest,
}

impl NodeLog {
    pub(crate) fn base_seq(&self) -> u64 {
        self.base.map_or(0, |base| base.seq.0)
    }

    pub(crate) fn last_seq(&self) -> Seq {
        Seq(self.base_seq() + self.digests.len() as u64)
    }

    pub(crate) fn last(&self) -> Option<Digest> {
        self.digests
            .last()
            .copied()
            .or(self.base.map(|base| base.digest))
    }

    pub(crate) fn at(&self, seq: Seq) -> Option<Digest> {
        match seq.0.checked_sub(self.base_seq())? {
            0 => self.base.map(|base| base.digest),
            index => self.digests.get(index as usize - 1).copied(),
        }
    }

    /// Whether it has an entry; what is in front of it was copied, and looked at then.
    fn has(&self, seq: Seq, digest: Digest) -> bool {
        seq.0 < self.base_seq() || self.at(seq) == Some(digest)
    }

    fn cut_after(&mut self, after: Seq) {
        let len = after.0.saturating_sub(self.base_seq()) as usize;
        self.digests.truncate(len);
    }

    fn push(&mut self, entry: &Entry) {
        self.digests.push(entry.header().digest);
    }
}

impl Lineage {
    fn at(&self, seq: Seq) -> Option<Digest> {
        match seq.0.checked_sub(self.start.seq.0)? {
            0 => Some(self.start.digest),
            index => self
                .committed
                .get(index as usize - 1)
                .map(|(digest, _)| *digest),
        }
    }

    fn len(&self) -> Seq {
        Seq(self.start.seq.0 + self.committed.len() as u64)
    }

    fn tip(&self) -> Digest {
        self.committed
            .last()
            .map_or(self.start.digest, |(digest, _)| *digest)
    }
}

impl Checker {
    /// A history begins, with these settings, behind this.
    pub(crate) fn begin(&mut self, history: HistoryId, start: Point, settings: Settings, tid: Tid) {
        let lineage = Lineage {
            start,
            settings: Rc::new(settings),
            committed: Vec::new(),
            held: BTreeMap::new(),
            last_tid: tid,
            inherited: Vec::new(),
        };
        self.lineages.insert(history, lineage);
    }

    /// How far a history is committed.
    pub(crate) fn committed(&self, history: HistoryId) -> Seq {
        self.lineages.get(&history).map_or(Seq::ZERO, Lineage::len)
    }

    pub(crate) fn committed_at(&self, history: HistoryId, seq: Seq) -> Option<&Entry> {
        let digest = self.lineages.get(&history)?.at(seq)?;
        self.entries.get(&digest).map(|known| &known.entry)
    }

    /// All that is committed, up to there, those of the histories before included.
    pub(crate) fn history_of(&self, history: HistoryId, through: Seq) -> Option<Vec<&Entry>> {
        let lineage = self.lineages.get(&history)?;
        let len = through.0.checked_sub(lineage.start.seq.0)? as usize;
        let own = lineage.committed.get(..len)?.iter();
        let mut all: Vec<&Entry> = lineage.inherited.iter().collect();
        all.extend(own.filter_map(|(digest, _)| Some(&self.entries.get(digest)?.entry)));
        Some(all)
    }

    /// Whether an entry is older than a history.
    pub(crate) fn is_before(&self, history: HistoryId, seq: Seq) -> bool {
        self.lineages
            .get(&history)
            .is_some_and(|it| seq <= it.start.seq)
    }

    /// What is in front of the first entry of a history.
    pub(crate) fn inherit(&mut self, history: HistoryId, entries: Vec<Entry>) {
        if let Some(lineage) = self.lineages.get_mut(&history) {
            lineage.inherited = entries;
        }
    }

    /// All entries up to the end of somebody's log, those of the histories before included.
    pub(crate) fn log_of(&self, place: Place, last: Point) -> Result<Vec<Entry>, String> {
        let lineage = self.lineages.get(&place.0).ok_or("no such history")?;
        let mut digest = last.digest;
        let mut entries = Vec::new();
        while digest != lineage.start.digest {
            let known = self.entries.get(&digest);
            let known = known.ok_or_else(|| format!("{} has what nobody knows", place.1))?;
            entries.push(known.entry.clone());
            digest = known.entry.header().previous;
        }
        entries.extend(lineage.inherited.iter().rev().cloned());
        entries.reverse();
        Ok(entries)
    }

    pub(crate) fn settings_at(&self, history: HistoryId, digest: Digest) -> Rc<Settings> {
        self.settings_of(&self.lineages[&history], digest)
    }

    /// The highest tid that is committed.
    pub(crate) fn last_tid(&self, history: HistoryId) -> Tid {
        self.lineages[&history].last_tid
    }

    /// As of what is committed.
    pub(crate) fn settings(&self, history: HistoryId) -> Rc<Settings> {
        let lineage = &self.lineages[&history];
        self.settings_of(lineage, lineage.tip())
    }

    fn settings_of(&self, lineage: &Lineage, digest: Digest) -> Rc<Settings> {
        let known = self.entries.get(&digest);
        known.map_or_else(|| lineage.settings.clone(), |known| known.settings.clone())
    }

    /// All that somebody counts, now or when entries come to be committed.
    pub(crate) fn all_members(&self, history: HistoryId) -> Vec<Members> {
        let mut all = vec![self.settings(history).members.clone()];
        let logs = self.stable.iter().chain(&self.running);
        for (_, log) in logs.filter(|((of, _), _)| *of == history) {
            let committed = self.committed(history);
            for digest in log.digests.iter().rev() {
                let Some(known) = self.entries.get(digest) else {
                    break;
                };
                if known.entry.header().seq <= committed {
                    break;
                }
                if !all.contains(&known.settings.members) {
                    all.push(known.settings.members.clone());
                }
            }
        }
        all
    }

    /// Where the newest log that these have on their disks ends, and the settings as of there: what
    /// is not committed there still may be, for all that they know.
    pub(crate) fn newest_of<'a>(
        &self,
        history: HistoryId,
        voters: impl Iterator<Item = &'a Voter>,
    ) -> (Position, Rc<Settings>) {
        let lineage = &self.lineages[&history];
        let logs = voters.filter_map(|voter| self.stable.get(&(history, *voter)));
        let ends = logs.filter_map(|log| self.entries.get(&log.last()?));
        let ends = ends.map(|known| {
            let header = known.entry.header();
            let (epoch, seq) = (header.epoch, header.seq);
            (Position { epoch, seq }, known.settings.clone())
        });
        let start = (Position::default(), lineage.settings.clone());
        ends.chain([start])
            .max_by_key(|(end, _)| *end)
            .unwrap_or_default()
    }

    /// What was found to be committed, in order.
    pub(crate) fn take_fresh(&mut self) -> Vec<(HistoryId, Epoch, Entry)> {
        std::mem::take(&mut self.fresh)
    }

    pub(crate) fn stable(&self, place: &Place) -> Option<&NodeLog> {
        self.stable.get(place)
    }

    fn learn(&mut self, history: HistoryId, entry: &Entry) -> Checked {
        let header = *entry.header();
        if self.entries.contains_key(&header.digest) {
            return Ok(());
        }
        let Some(lineage) = self.lineages.get(&history) else {
            return Err("an entry of no history".to_owned());
        };
        let before = self.entries.get(&header.previous);
        if before.is_none() && header.previous != lineage.start.digest {
            return Err(format!(
                "entry {} follows nothing that is known",
                header.seq
            ));
        }
        let mut settings = self.settings_of(lineage, header.previous);
        let mut regime = before.map_or(Position::default(), |known| known.regime);
        if let Some(change) = change_of(entry) {
            settings = Rc::new(settings.changed(&change, header.seq));
            if matches!(change, Change::Barrier(_) | Change::Members(_)) {
                regime = Position {
                    epoch: header.epoch,
                    seq: header.seq,
                };
            }
        } else if Kind::from_number(header.kind) != Some(Kind::Transaction) {
            return Err(format!("entry {} cannot be understood", header.seq));
        }
        let known = Known {
            entry: entry.clone(),
            settings,
            regime,
        };
        self.entries.insert(header.digest, known);
        Ok(())
    }

    /// The entry at a place of the log that ends with this one.
    fn ancestor(&self, mut digest: Digest, seq: Seq) -> Option<Digest> {
        loop {
            let header = self.entries.get(&digest)?.entry.header();
            if header.seq <= seq {
                return (header.seq == seq).then_some(digest);
            }
            if header.seq == seq.next() {
                return Some(header.previous);
            }
            digest = header.previous;
        }
    }

    /// A process has opened its disk and found this. `torn`: what was being done when it ended.
    pub(crate) fn opened(&mut self, place: Place, found: NodeLog, torn: &Torn) -> Checked {
        let who = place.1;
        let is_new = found.digests.is_empty() && found.base == torn.adopted && found.base.is_some();
        if is_new && let Some(base) = torn.adopted {
            let promised = self
                .stable
                .get(&place)
                .map_or(found.promised, |old| old.promised);
            if found.promised < promised {
                return Err(format!(
                    "I5: {who} had promised {promised}, and forgot it for a copy"
                ));
            }
            return self.copied(place, base, found.promised);
        }
        if let Some(old) = self.stable.get(&place) {
            if found.promised < old.promised {
                let (was, is) = (old.promised, found.promised);
                return Err(format!(
                    "I5: {who} had promised {was}, and {is} after a start"
                ));
            }
            let kept = torn
                .cut_after
                .map_or(old.last_seq(), |after| after.min(old.last_seq()));
            if found.last_seq() < kept {
                let (last, kept) = (found.last_seq(), kept);
                return Err(format!(
                    "{who} had {kept} entries on disk, and has {last} now"
                ));
            }
            for (at, digest) in found.digests.iter().enumerate() {
                let seq = Seq(found.base_seq() + at as u64 + 1);
                let may = match old.at(seq) {
                    Some(old) => old == *digest,
                    None if seq.0 <= old.base_seq() => true,
                    None => torn.appended.contains(digest),
                };
                if !may {
                    return Err(format!("{who} has another entry {seq} on disk than before"));
                }
            }
        }
        if let Some((position, _)) = &found.record
            && position.epoch >= found.promised
        {
            let records = self.records.entry((place, position.epoch)).or_default();
            *records = position.seq.max(*records);
        }
        self.running.insert(place, found.clone());
        let record = self.stable.get(&place).and_then(|old| old.record.clone());
        let found = NodeLog {
            record: found.record.clone().or(record),
            ..found
        };
        let epoch = found.record.as_ref().map(|(position, _)| position.epoch);
        self.stable.insert(place, found);
        if let Some(epoch) = epoch {
            self.advance(place.0, epoch)?;
        }
        self.note_held(place)
    }

    /// A directory was made, or made anew, behind a copy.
    pub(crate) fn copied(&mut self, place: Place, base: Point, promised: Epoch) -> Checked {
        let lineage = &self.lineages[&place.0];
        if lineage.at(base.seq) != Some(base.digest) {
            return Err(format!(
                "I10: {} has a copy up to {} that is not committed",
                place.1, base.seq
            ));
        }
        let record = None;
        let log = NodeLog {
            base: Some(base),
            digests: Vec::new(),
            promised,
            record,
        };
        self.running.insert(place, log.clone());
        self.stable.insert(place, log);
        self.check_durable(place.0)
    }

    pub(crate) fn stopped(&mut self, place: &Place) {
        self.running.remove(place);
    }

    /// A replica wants entries appended; `office` is the epoch that it is primary of.
    pub(crate) fn on_append(
        &mut self,
        place: Place,
        process: u64,
        entries: &[Entry],
        office: Option<Epoch>,
    ) -> Checked {
        let (history, who) = place;
        for entry in entries {
            self.learn(history, entry)?;
            let header = *entry.header();
            let log = self.running.entry(place).or_default();
            if header.seq != log.last_seq().next() || Some(header.previous) != log.last() {
                return Err(format!(
                    "{who} appends entry {}, which does not follow",
                    header.seq
                ));
            }
            log.push(entry);
            let is_first = Kind::from_number(header.kind) == Some(Kind::Barrier);
            if is_first && office == Some(header.epoch) {
                self.take_office(place, process, header.epoch, header.previous)?;
            }
        }
        Ok(())
    }

    /// There was no room: the log of a process ends here.
    pub(crate) fn on_no_room(&mut self, place: &Place, last: Seq) {
        if let Some(log) = self.running.get_mut(place) {
            log.cut_after(last);
        }
    }

    /// A replica wants its log to be cut, and knows so much to be committed.
    pub(crate) fn on_cut(&mut self, place: &Place, after: Seq, known: Seq) -> Checked {
        if after < known {
            return Err(format!(
                "I9: {} cuts behind {after}, and knows {known}",
                place.1
            ));
        }
        if let Some(log) = self.running.get_mut(place) {
            log.cut_after(after);
        }
        Ok(())
    }

    /// Entries are on stable storage now.
    pub(crate) fn on_appended(&mut self, place: Place, entries: &[Entry]) -> Checked {
        let log = self.stable.entry(place).or_default();
        for entry in entries {
            if entry.header().seq != log.last_seq().next() {
                return Err(format!(
                    "{} was given {} twice",
                    place.1,
                    entry.header().seq
                ));
            }
            log.push(entry);
        }
        self.note_held(place)
    }

    pub(crate) fn on_promised(&mut self, place: Place, epoch: Epoch) -> Checked {
        let log = self.stable.entry(place).or_default();
        if epoch < log.promised {
            return Err(format!(
                "I5: {} promised {epoch} after {}",
                place.1, log.promised
            ));
        }
        log.promised = epoch;
        self.note_held(place)
    }

    pub(crate) fn on_cut_done(&mut self, place: Place, after: Seq) -> Checked {
        self.stable.entry(place).or_default().cut_after(after);
        self.check_durable(place.0)
    }

    pub(crate) fn on_recorded(
        &mut self,
        place: Place,
        position: Position,
        members: Members,
    ) -> Checked {
        let log = self.stable.entry(place).or_default();
        log.record = Some((position, members));
        if position.epoch < log.promised {
            return Ok(());
        }
        let records = self.records.entry((place, position.epoch)).or_default();
        *records = position.seq.max(*records);
        self.advance(place.0, position.epoch)
    }

    fn note_held(&mut self, place: Place) -> Checked {
        let (history, who) = place;
        let log = &self.stable[&place];
        let Some(known) = log.last().and_then(|last| self.entries.get(&last)) else {
            return Ok(());
        };
        let point = known.entry.point();
        if point.epoch != log.promised {
            return Ok(());
        }
        let lineage = self.lineages.get_mut(&history).ok_or("no such history")?;
        let held = lineage.held.entry(point.epoch).or_default();
        let mine = held.entry(who).or_insert(point);
        if point.seq >= mine.seq {
            if point.seq == mine.seq && point.digest != mine.digest {
                return Err(format!(
                    "I4: two entries {} of epoch {}",
                    point.seq, point.epoch
                ));
            }
            *mine = point;
        }
        self.advance(history, point.epoch)
    }

    /// What has come to be committed in an epoch.
    fn advance(&mut self, history: HistoryId, epoch: Epoch) -> Checked {
        let lineage = &self.lineages[&history];
        let Some(held) = lineage.held.get(&epoch) else {
            return Ok(());
        };
        let mut points: Vec<Point> = held.values().copied().collect();
        // Who is counted for what is in front of a change of that is for itself.
        for index in 0..points.len() {
            let mut point = points[index];
            while let Some(before) = self.before_regime(&point, lineage.len()) {
                points.push(before);
                point = before;
            }
        }
        points.sort_by_key(|point| std::cmp::Reverse(point.seq));
        let point = points
            .into_iter()
            .find(|point| self.is_quorum(history, held, point));
        match point {
            Some(point) => self.commit(history, epoch, point),
            None => Ok(()),
        }
    }

    /// The last entry that others are counted for than for this one, if it is not committed.
    fn before_regime(&self, point: &Point, committed: Seq) -> Option<Point> {
        let regime = self.entries.get(&point.digest)?.regime;
        let seq = Seq(regime.seq.0.checked_sub(1)?);
        if seq <= committed {
            return None;
        }
        let digest = self.ancestor(point.digest, seq)?;
        Some(self.entries.get(&digest)?.entry.point()).filter(|it| it.epoch == point.epoch)
    }

    fn is_quorum(&self, history: HistoryId, held: &BTreeMap<Voter, Point>, point: &Point) -> bool {
        let Some(known) = self.entries.get(&point.digest) else {
            return false;
        };
        let members = &known.settings.members;
        let has = |voter: &Voter| held.get(voter).is_some_and(|held| held.seq >= point.seq);
        match &members.arbiter {
            None => 2 * members.voters.iter().filter(|it| has(it)).count() > members.voters.len(),
            Some(arbiter) => {
                let has_record = |voter: &Voter| {
                    let held = held.get(voter);
                    held.is_some_and(|held| held.seq >= known.regime.seq)
                };
                // An epoch begins with a barrier entry, which says who is counted.
                let record = self
                    .records
                    .get(&((history, arbiter.node), known.regime.epoch));
                let is_on_record = record.is_some_and(|seq| *seq >= known.regime.seq);
                let records = members.voters.iter().filter(|it| has_record(it)).count();
                arbiter.in_sync.iter().all(has) && records + usize::from(is_on_record) >= 2
            }
        }
    }

    fn commit(&mut self, history: HistoryId, epoch: Epoch, point: Point) -> Checked {
        let tip = self.lineages[&history].len();
        if point.seq <= tip {
            let at = self.lineages[&history].at(point.seq);
            return if at == Some(point.digest) {
                Ok(())
            } else {
                Err(format!(
                    "I1: entry {} is committed in epoch {epoch}, and was another",
                    point.seq
                ))
            };
        }
        let mut news = Vec::new();
        let mut digest = point.digest;
        while let Some(known) = self.entries.get(&digest) {
            if known.entry.header().seq <= tip {
                break;
            }
            news.push(known.entry.clone());
            digest = known.entry.header().previous;
        }
        if digest != self.lineages[&history].tip() {
            return Err(format!(
                "I1: entry {tip} is committed, and epoch {epoch} commits {} behind another",
                point.seq
            ));
        }
        for entry in news.into_iter().rev() {
            self.commit_one(history, epoch, entry)?;
        }
        self.check_offices(history, epoch)?;
        self.check_durable(history)
    }

    fn commit_one(&mut self, history: HistoryId, epoch: Epoch, entry: Entry) -> Checked {
        let header = *entry.header();
        let lineage = self.lineages.get_mut(&history).ok_or("no such history")?;
        if header.tid != Tid::ZERO {
            if header.tid <= lineage.last_tid {
                let last = lineage.last_tid;
                return Err(format!(
                    "I7: entry {} has tid {} after {last}",
                    header.seq, header.tid
                ));
            }
            lineage.last_tid = header.tid;
        }
        lineage.committed.push((header.digest, epoch));
        if self.lost.contains(&body_key(entry.body())) {
            return Err(format!("I13: entry {} was said to be lost", header.seq));
        }
        self.fresh.push((history, epoch, entry));
        Ok(())
    }

    /// What is committed is there in a quorum of those who are counted now.
    pub(crate) fn check_durable(&self, history: HistoryId) -> Checked {
        let Some(lineage) = self.lineages.get(&history) else {
            return Ok(());
        };
        if lineage.committed.is_empty() {
            return Ok(());
        }
        let (seq, tip) = (lineage.len(), lineage.tip());
        let members = &self.settings_of(lineage, tip).members;
        let has = |voter: &Voter| {
            let log = self.stable.get(&(history, *voter));
            log.is_some_and(|log| log.has(seq, tip))
        };
        let is_there = match &members.arbiter {
            None => 2 * members.voters.iter().filter(|it| has(it)).count() > members.voters.len(),
            Some(arbiter) => arbiter.in_sync.iter().all(has),
        };
        if is_there {
            Ok(())
        } else {
            Err(format!(
                "I2: entry {seq} is committed, and not on enough disks any more"
            ))
        }
    }

    fn take_office(&mut self, place: Place, process: u64, epoch: Epoch, before: Digest) -> Checked {
        let (history, who) = place;
        match self.offices.get(&(history, epoch)) {
            Some(office) if office.who != who || office.process != process => {
                return Err(format!("I4: a second primary of epoch {epoch}"));
            }
            Some(_) => return Err(format!("I4: {who} begins epoch {epoch} twice")),
            None => {}
        }
        let office = Office {
            who,
            process,
            before,
        };
        self.offices.insert((history, epoch), office);
        self.check_office(history, epoch)
    }

    /// Offices of higher epochs that began before this one's commit.
    fn check_offices(&self, history: HistoryId, epoch: Epoch) -> Checked {
        let later = self.offices.keys();
        let mut later = later.filter(|(of, it)| *of == history && *it > epoch);
        later.try_for_each(|(_, later)| self.check_office(history, *later))
    }

    fn check_office(&self, history: HistoryId, epoch: Epoch) -> Checked {
        let lineage = &self.lineages[&history];
        let office = &self.offices[&(history, epoch)];
        let lower = lineage.committed.iter().rposition(|(_, of)| *of < epoch);
        let Some(last) = lower else { return Ok(()) };
        let (digest, of) = lineage.committed[last];
        let seq = Seq(lineage.start.seq.0 + last as u64 + 1);
        if self.ancestor(office.before, seq) == Some(digest) {
            return Ok(());
        }
        Err(format!(
            "I3: {} is primary of {epoch} without entry {seq}, which {of} commits",
            office.who
        ))
    }

    /// A replica knows this to be committed.
    pub(crate) fn on_known(&self, place: &Place, seq: Seq) -> Checked {
        let Some(lineage) = self.lineages.get(&place.0) else {
            return Ok(());
        };
        if seq > lineage.len() {
            let len = lineage.len();
            return Err(format!(
                "I1: {} says that {seq} is committed, and {len} is",
                place.1
            ));
        }
        let Some(log) = self.running.get(place) else {
            return Ok(());
        };
        if log.record.is_some() {
            // An arbiter has no entries.
            return Ok(());
        }
        let (mine, theirs) = (log.at(seq), lineage.at(seq));
        if seq.0 > log.base_seq() && seq > lineage.start.seq && mine != theirs {
            return Err(format!(
                "I1: {} has another entry {seq} than is committed",
                place.1
            ));
        }
        Ok(())
    }

    /// A replica applies up to here.
    pub(crate) fn on_apply(&self, place: &Place, through: Seq) -> Checked {
        self.on_known(place, through)?;
        let Some(lineage) = self.lineages.get(&place.0) else {
            return Ok(());
        };
        let Some(log) = self.stable.get(place) else {
            return Ok(());
        };
        if through.0 > log.base_seq() && log.at(through) != lineage.at(through) {
            return Err(format!(
                "I10: {} applies {through}, which its disk has not",
                place.1
            ));
        }
        Ok(())
    }

    /// A process has sent something.
    pub(crate) fn on_sent(&mut self, place: Place, process: u64, content: &Content) -> Checked {
        let (history, who) = place;
        let Some(stable) = self.stable.get(&place) else {
            return Ok(());
        };
        match content {
            Content::State(state) if state.promised > stable.promised => {
                let promised = state.promised;
                return Err(format!("I5: {who} tells {promised} before it is synced"));
            }
            Content::Claim { epoch, .. } | Content::Promise { epoch, .. }
                if *epoch != stable.promised =>
            {
                let promised = stable.promised;
                return Err(format!("I5: {who} says {epoch}, promised is {promised}"));
            }
            Content::Ack { epoch, seq, .. } => {
                if *epoch != stable.promised {
                    let promised = stable.promised;
                    return Err(format!(
                        "I5: {who} acknowledges in {epoch}, promised is {promised}"
                    ));
                }
                if *seq > stable.last_seq() {
                    return Err(format!(
                        "I2: {who} acknowledges {seq}, which is not on its disk"
                    ));
                }
            }
            Content::Propose {
                entry, committed, ..
            } => {
                self.check_office_of(history, who, process, entry.header().epoch)?;
                self.on_known(&place, *committed)?;
            }
            Content::Commit {
                epoch, committed, ..
            } => {
                self.check_office_of(history, who, process, *epoch)?;
                self.on_known(&place, *committed)?;
            }
            Content::Told { committed, .. } => self.on_known(&place, *committed)?,
            _ => {}
        }
        Ok(())
    }

    fn check_office_of(
        &self,
        history: HistoryId,
        who: Voter,
        process: u64,
        epoch: Epoch,
    ) -> Checked {
        match self.offices.get(&(history, epoch)) {
            Some(office) if (office.who, office.process) == (who, process) => Ok(()),
            _ => Err(format!(
                "I4: {who} speaks as primary of {epoch}, which it is not"
            )),
        }
    }

    /// A finish was said to have failed for good.
    pub(crate) fn on_lost(&mut self, body: &[bytes::Bytes]) -> Checked {
        let key = body_key(body);
        let mut all = self
            .lineages
            .values()
            .flat_map(|lineage| &lineage.committed);
        if all.any(|(digest, _)| body_key(self.entries[digest].entry.body()) == key) {
            return Err("I13: a finish is committed and was said to be lost".to_owned());
        }
        self.lost.insert(key);
        Ok(())
    }
}

/// What was being done on a disk when a process ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Torn {
    pub(crate) appended: BTreeSet<Digest>,
    pub(crate) cut_after: Option<Seq>,
    /// The copy that was being taken over.
    pub(crate) adopted: Option<Point>,
}

fn body_key(body: &[bytes::Bytes]) -> Digest {
    use sha2::{Digest as _, Sha256};
    let mut hasher = Sha256::new();
    body.iter().for_each(|piece| hasher.update(piece));
    crate::ids::Digest(hasher.finalize().into())
}
