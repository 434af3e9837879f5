//! EventStoreDB's side of the simulation: a category's links and the groups on it, with what real
//! ones do: redelivery, time-outs, lost acknowledgements, restarts from a checkpoint.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

use super::{Sim, ports::SimulatedProcess};
use crate::{
    journal::{
        JournalError, Unplaced,
        feed::{Delivery, Ensured, Feed, GroupInfo, GroupSpec, Head, Mark, Nack, Said, Subscription},
        memory::Happened,
    },
    projection::Source,
};

/// Checkpoints are written now and then: what was acknowledged since is delivered again.
const CHECKPOINT_EVERY: usize = 5;

#[derive(Default)]
pub(super) struct Groups {
    named: BTreeMap<Arc<str>, Group>,
    /// The category's links.
    links: Vec<Happened>,
    looked: usize,
    /// `$by_category` stands still.
    pub(super) stalled: bool,
    consumers: u64,
}

#[derive(Default)]
struct Group {
    timeout: Duration,
    checkpoint: Option<u64>,
    /// The next link to be delivered for the first time.
    next: u64,
    retries: VecDeque<(u64, u32)>,
    in_flight: BTreeMap<u64, Flight>,
    done: BTreeSet<u64>,
    consumers: Vec<Consumer>,
    parked: BTreeSet<u64>,
    delivered: u64,
}

#[derive(Clone, Copy)]
struct Flight {
    consumer: u64,
    until: Instant,
    retry: u32,
}

struct Consumer {
    number: u64,
    process: Arc<SimulatedProcess>,
    room: usize,
    queue: VecDeque<Delivery>,
    news: Arc<Notify>,
    pinned: bool,
}

/// The groups as they once were.
pub(super) struct GroupsBackup {
    checkpoints: BTreeMap<Arc<str>, (Duration, Option<u64>)>,
    links: Vec<Happened>,
    looked: usize,
}

impl Groups {
    /// The first links of the category; fewer when the store was restored meanwhile.
    pub(super) fn first(&self, count: usize) -> Vec<Happened> {
        self.links[..count.min(self.links.len())].to_vec()
    }

    /// What a copy of the event store has of them.
    pub(super) fn backup(&self) -> GroupsBackup {
        let checkpoint = |(name, group): (&Arc<str>, &Group)| (name.clone(), (group.timeout, group.checkpoint));
        GroupsBackup {
            checkpoints: self.named.iter().map(checkpoint).collect(),
            links: self.links.clone(),
            looked: self.looked,
        }
    }

    /// Every connection ends with the store that it was made to.
    pub(super) fn restore(&mut self, backup: GroupsBackup) {
        self.named.values_mut().for_each(Group::restart);
        let group = |(name, (timeout, checkpoint)): (Arc<str>, (Duration, Option<u64>))| {
            let group = Group {
                timeout,
                checkpoint,
                next: checkpoint.map_or(0, |at| at + 1),
                ..Group::default()
            };
            (name, group)
        };
        self.named = backup.checkpoints.into_iter().map(group).collect();
        self.links = backup.links;
        self.looked = backup.looked;
    }
}

impl Group {
    /// Everything below is done.
    fn low(&self) -> u64 {
        let from = self.checkpoint.map_or(0, |at| at + 1);
        let mut low = from;
        while self.done.contains(&low) {
            low += 1;
        }
        low
    }

    fn write_checkpoint(&mut self) {
        if let Some(last) = self.low().checked_sub(1) {
            self.checkpoint = self.checkpoint.max(Some(last));
            self.done = self.done.split_off(&(last + 1));
        }
    }

    fn give_back(&mut self, consumer: u64) {
        let lost: Vec<_> = self
            .in_flight
            .iter()
            .filter(|(_, f)| f.consumer == consumer)
            .map(|(at, f)| (*at, f.retry))
            .collect();
        for (at, retry) in lost {
            self.in_flight.remove(&at);
            self.retries.push_back((at, retry + 1));
        }
    }

    /// The server forgets all but the checkpoint.
    fn restart(&mut self) {
        self.retries.clear();
        self.in_flight.clear();
        self.done.clear();
        self.next = self.checkpoint.map_or(0, |at| at + 1);
        for consumer in self.consumers.drain(..) {
            consumer.news.notify_one();
        }
    }
}

fn ack_of(at: u64) -> Uuid {
    Uuid::from_u128(u128::from(at) + 1)
}

fn link_of(ack: Uuid) -> Option<u64> {
    u64::try_from(ack.as_u128().checked_sub(1)?).ok()
}

impl Sim {
    /// Links what has happened, hands out what consumers have room for.
    pub(super) fn pump(&self) {
        let mut groups = self.groups();
        let groups = &mut *groups;
        if !groups.stalled {
            let happened = self.journal.happened(groups.looked);
            groups.looked += happened.len();
            groups.links.extend(happened);
        }
        let now = Instant::now();
        for group in groups.named.values_mut() {
            let late: Vec<_> = group
                .in_flight
                .iter()
                .filter(|(_, f)| f.until <= now)
                .map(|(at, f)| (*at, f.retry))
                .collect();
            for (at, retry) in late {
                group.in_flight.remove(&at);
                group.retries.push_back((at, retry + 1));
            }
            while let Some(delivered) = self.hand_out(group, &groups.links, now) {
                if !delivered {
                    break;
                }
            }
        }
    }

    /// `None`: nothing is left to hand out; `false`: nobody has room for it.
    fn hand_out(&self, group: &mut Group, links: &[Happened], now: Instant) -> Option<bool> {
        let (at, retry, again) = match group.retries.front() {
            Some((at, retry)) => (*at, *retry, true),
            None if (group.next as usize) < links.len() => (group.next, 0, false),
            None => return None,
        };
        let link = &links[at as usize];
        let open: Vec<usize> = (0..group.consumers.len())
            .filter(|n| {
                let consumer = &group.consumers[*n];
                let held = group
                    .in_flight
                    .values()
                    .filter(|f| f.consumer == consumer.number)
                    .count();
                consumer.process.alive() && held < consumer.room
            })
            .collect();
        let pinned = group.consumers.first().is_some_and(|consumer| consumer.pinned);
        let chosen = if pinned {
            let home = link.stream.bytes().map(usize::from).sum::<usize>() % group.consumers.len().max(1);
            open.iter().copied().find(|n| *n == home)
        } else if open.is_empty() {
            None
        } else {
            Some(open[self.below(open.len())])
        };
        let Some(chosen) = chosen else { return Some(false) };
        if again {
            group.retries.pop_front();
        } else {
            group.next += 1;
        }
        let consumer = &mut group.consumers[chosen];
        let until = now + group.timeout;
        group.in_flight.insert(
            at,
            Flight {
                consumer: consumer.number,
                until,
                retry,
            },
        );
        group.delivered += 1;
        consumer.queue.push_back(Delivery {
            retry,
            ..self.delivery(at, link)
        });
        // The very same one may come twice.
        if self.chance(10) {
            let again = consumer.queue.back().cloned();
            consumer.queue.extend(again);
        }
        consumer.news.notify_one();
        Some(true)
    }

    fn delivery(&self, at: u64, link: &Happened) -> Delivery {
        let event = link.revision.and_then(|revision| self.readable(&link.stream, revision));
        let stream = link.stream.clone();
        let said = match (event, link.revision) {
            _ if stream.ends_with("-odd") => Said::Unplaced(Unplaced::Link),
            (Some(event), _) if &*event.kind == "$>" && self.chance(128) => Said::Onward { stream },
            (Some(event), _) if !self.chance(12) => Said::Event(event),
            (_, revision) => Said::Moved { stream, revision },
        };
        Delivery {
            ack: ack_of(at),
            retry: 0,
            at: link.at,
            place: Some(Mark::Revision(at)),
            said,
        }
    }

    /// The server is restarted, or another node took over: groups go on from their checkpoints.
    pub(super) fn restart_groups(&self) {
        self.groups().named.values_mut().for_each(Group::restart);
    }

    /// A process is gone, and its connections with it.
    pub(super) fn hang_up(&self) {
        for group in self.groups().named.values_mut() {
            let (here, gone): (Vec<_>, Vec<_>) = group.consumers.drain(..).partition(|c| c.process.alive());
            group.consumers = here;
            for consumer in gone {
                group.give_back(consumer.number);
            }
        }
    }

    /// Why a group is not at rest.
    pub(super) fn unrest(&self, name: &str) -> Option<String> {
        let groups = self.groups();
        let group = groups.named.get(name)?;
        let at_rest =
            group.in_flight.is_empty() && group.retries.is_empty() && group.low() == groups.links.len() as u64;
        let all = groups.looked == self.journal.so_far();
        (!at_rest || !all).then(|| {
            format!(
                "group {name}: done below {} of {} links, in flight {:?}, to be tried again {:?}",
                group.low(),
                groups.links.len(),
                group.in_flight.keys(),
                group.retries
            )
        })
    }

    fn answered(&self, name: &str, ids: &[Uuid], park: bool) {
        let settled: Vec<_> = {
            let mut groups = self.groups();
            let Groups { named, links, .. } = &mut *groups;
            let Some(group) = named.get_mut(name) else { return };
            let mut settled = Vec::new();
            for at in ids.iter().filter_map(|id| link_of(*id)) {
                // Timed out and not yet delivered again, an answer still counts.
                let waits = group.retries.iter().position(|(waits, _)| *waits == at);
                if group.in_flight.remove(&at).is_none() && waits.map(|n| group.retries.remove(n)).is_none() {
                    continue;
                }
                group.done.insert(at);
                if park {
                    group.parked.insert(at);
                }
                settled.push(links[at as usize].clone());
            }
            if self.below(CHECKPOINT_EVERY) == 0 {
                group.write_checkpoint();
            }
            settled
        };
        for link in settled {
            // A `$>` record changes nothing, and those before it have deliveries of their own.
            let event = link.revision.and_then(|revision| self.readable(&link.stream, revision));
            if event.is_none_or(|event| &*event.kind != "$>") {
                self.check_settled(name, &link, "it was acknowledged");
            }
        }
        self.pump();
    }
}

/// Groups as one process sees them.
#[derive(Clone)]
pub(super) struct SimFeed {
    pub(super) sim: Arc<Sim>,
    pub(super) process: Arc<SimulatedProcess>,
}

pub(super) struct SimSubscription {
    feed: SimFeed,
    group: Arc<str>,
    number: u64,
    news: Arc<Notify>,
}

impl SimFeed {
    async fn asked(&self, what: &str) -> Result<(), JournalError> {
        self.sim.trip(&self.process).await;
        self.sim.note(&self.process, what);
        self.sim.journal_answers(&self.process)
    }
}

impl Feed for SimFeed {
    type Subscription = SimSubscription;

    async fn ensure(&self, group: &GroupSpec) -> Result<Ensured, JournalError> {
        self.asked("ensure").await?;
        let mut groups = self.sim.groups();
        if groups.named.contains_key(&group.name) {
            return Ok(Ensured::Same);
        }
        let made = Group {
            timeout: group.message_timeout,
            ..Group::default()
        };
        groups.named.insert(group.name.clone(), made);
        Ok(Ensured::Created)
    }

    async fn restart(&self, group: &GroupSpec) -> Result<(), JournalError> {
        self.asked("restart").await?;
        if let Some(group) = self.sim.groups().named.get_mut(&group.name) {
            group.checkpoint = None;
            group.delivered = 0;
            group.parked.clear();
            group.restart();
        }
        Ok(())
    }

    async fn subscribe(&self, group: &GroupSpec, buffer: usize) -> Result<SimSubscription, JournalError> {
        self.asked("subscribe").await?;
        let news = Arc::new(Notify::new());
        let number = {
            let mut groups = self.sim.groups();
            groups.consumers += 1;
            let number = groups.consumers;
            let there = groups.named.get_mut(&group.name).ok_or_else(|| JournalError::NoGroup {
                feed: "$ce-tally".into(),
                group: group.name.to_string(),
            })?;
            there.consumers.push(Consumer {
                number,
                process: self.process.clone(),
                room: buffer,
                queue: VecDeque::new(),
                news: news.clone(),
                pinned: self.sim.plan.pinned,
            });
            number
        };
        self.sim.pump();
        Ok(SimSubscription {
            feed: self.clone(),
            group: group.name.clone(),
            number,
            news,
        })
    }

    async fn info(&self, group: &GroupSpec) -> Result<GroupInfo, JournalError> {
        self.asked("info").await?;
        let groups = self.sim.groups();
        let group = groups.named.get(&group.name).ok_or_else(|| JournalError::NoGroup {
            feed: "$ce-tally".into(),
            group: group.name.to_string(),
        })?;
        let live = group.next == groups.links.len() as u64;
        Ok(GroupInfo {
            status: if live { "Live" } else { "Behind" }.to_owned(),
            in_flight: group.in_flight.len() as u64,
            parked: group.parked.len() as u64,
            buffered: group.retries.len() as u64,
            delivered: group.delivered,
            known_revision: group.next.checked_sub(1),
            checkpoint_revision: group.checkpoint,
            consumers: group.consumers.len() as u64,
            ..GroupInfo::default()
        })
    }

    async fn head(&self, _: &Source) -> Result<Option<Head>, JournalError> {
        self.asked("head").await?;
        let groups = self.sim.groups();
        self.process.saw_head(groups.links.len());
        Ok(groups.links.last().map(|link| Head {
            revision: Some(groups.links.len() as u64 - 1),
            position: None,
            created: link.at,
        }))
    }

    async fn stalled(
        &self,
        _: &Source,
        _: Option<&Head>,
    ) -> Result<Option<chrono::DateTime<chrono::Utc>>, JournalError> {
        Ok(None)
    }

    async fn entries(
        &self,
        _: &Source,
        after: Option<Mark>,
        max: usize,
    ) -> Result<Vec<(Mark, Delivery)>, JournalError> {
        self.asked("entries").await?;
        let from = match after {
            Some(Mark::Revision(at) | Mark::Position(at)) => at + 1,
            None => 0,
        };
        let links = self.sim.groups().links.clone();
        let entries = links.iter().enumerate().skip(from as usize).take(max);
        Ok(entries
            .map(|(at, link)| (Mark::Revision(at as u64), self.sim.delivery(at as u64, link)))
            .collect())
    }
}

impl Subscription for SimSubscription {
    async fn next(&mut self) -> Result<Delivery, JournalError> {
        loop {
            {
                let mut groups = self.feed.sim.groups();
                let group = groups.named.get_mut(&self.group);
                let consumer = group.and_then(|g| g.consumers.iter_mut().find(|c| c.number == self.number));
                match consumer {
                    Some(consumer) => {
                        if let Some(delivery) = consumer.queue.pop_front() {
                            return Ok(delivery);
                        }
                    }
                    None if self.feed.process.alive() => {
                        return Err(JournalError::Unavailable("the server dropped its consumers".into()));
                    }
                    None => {}
                }
            }
            self.news.notified().await;
        }
    }

    async fn ack(&mut self, ids: Vec<Uuid>) -> Result<(), JournalError> {
        self.answer(ids, false);
        Ok(())
    }

    async fn nack(&mut self, ids: Vec<Uuid>, _: Nack, _: String) -> Result<(), JournalError> {
        self.answer(ids, true);
        Ok(())
    }

    async fn close(self) {}
}

impl SimSubscription {
    fn answer(&self, ids: Vec<Uuid>, park: bool) {
        let (sim, process) = (self.feed.sim.clone(), self.feed.process.clone());
        let (group, number) = (self.group.clone(), self.number);
        sim.note(
            &process,
            &format!("answer {:?}", ids.iter().map(|id| link_of(*id)).collect::<Vec<_>>()),
        );
        let wait = sim.latency();
        // What is on its way when the connection goes is lost.
        let arrive = move || {
            let there = sim
                .groups()
                .named
                .get(&group)
                .is_some_and(|g| g.consumers.iter().any(|c| c.number == number));
            if there {
                sim.answered(&group, &ids, park);
            }
        };
        if wait.is_zero() {
            arrive();
            return;
        }
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            arrive();
        });
    }
}

impl Drop for SimSubscription {
    fn drop(&mut self) {
        let mut groups = self.feed.sim.groups();
        if let Some(group) = groups.named.get_mut(&self.group) {
            group.consumers.retain(|consumer| consumer.number != self.number);
            group.give_back(self.number);
        }
    }
}
