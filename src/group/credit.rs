//! How far a sender may be ahead of the slowest member.
//!
//! What comes back to its sender has passed the sender's daemon; a slow member's daemon may still
//! keep it, and Spread disconnects a member that it keeps a thousand bodies for. So members tell
//! each sender now and then how many bodies to all they have had of it, and a sender waits for
//! those that are far behind: a hiccup of a member costs the others as much time, and not the
//! member its place. But no more than [`CREDIT_WAIT_MAX`]: who says nothing for so long while he is
//! waited for is not waited for any more until he has caught up.
//!
//! Bodies are counted from each view on, as it stands at the same place among the bodies of a
//! sender for all members; the view's name goes with the number.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{MemberId, ViewId};
use crate::limits::MEMBER_BACKLOG_MAX;
use crate::limits::{CREDIT_MIN, CREDIT_WAIT_MAX, IN_FLIGHT_BODIES_MAX, IN_FLIGHT_CONTROL_MAX};

/// What all members know of each other's progress in one view.
#[derive(Debug)]
pub(super) struct Credit {
    view: ViewId,
    /// How far we may be ahead.
    ahead_max: u64,
    /// Our own bodies to all that have come back.
    own: u64,
    others: BTreeMap<MemberId, Other>,
    /// Since when we wait for somebody.
    waiting: Option<Instant>,
}

#[derive(Debug)]
struct Other {
    /// Bodies of it that we have had.
    had: u64,
    /// What we have told it of that.
    told: u64,
    /// Bodies of ours that it has had, as far as it has said.
    has: u64,
    /// When it last said that it has had more.
    said: Option<Instant>,
    /// We do not wait for it.
    given_up: bool,
}

impl Credit {
    /// For a view with these other members.
    pub(super) fn new<'a>(view: ViewId, others: impl Iterator<Item = &'a MemberId>) -> Self {
        let new = || Other {
            had: 0,
            told: 0,
            has: 0,
            said: None,
            given_up: false,
        };
        let others: BTreeMap<MemberId, Other> = others.map(|it| (it.clone(), new())).collect();
        let share = MEMBER_BACKLOG_MAX / (others.len() + 1);
        let in_flight = IN_FLIGHT_BODIES_MAX + 2 * IN_FLIGHT_CONTROL_MAX;
        Self {
            view,
            ahead_max: share.saturating_sub(in_flight).max(CREDIT_MIN) as u64,
            own: 0,
            others,
            waiting: None,
        }
    }

    /// The view that the numbers are of.
    pub(super) const fn view(&self) -> ViewId {
        self.view
    }

    /// One of ours to all has come back.
    pub(super) const fn on_own(&mut self) {
        self.own += 1;
    }

    /// One of another member to all has come. Returns how many that are, if it is to be told.
    pub(super) fn on_other(&mut self, from: &MemberId) -> Option<u64> {
        let other = self.others.get_mut(from)?;
        other.had += 1;
        if other.had - other.told < (self.ahead_max / 4).max(1) {
            return None;
        }
        other.told = other.had;
        Some(other.had)
    }

    /// A member has had so many of ours.
    pub(super) fn on_told(&mut self, from: &MemberId, has: u64, now: Instant) {
        let Some(other) = self.others.get_mut(from) else {
            return;
        };
        let has = has.min(self.own);
        if has <= other.has {
            // Whoever stands still is not waited for any longer for saying so.
            return;
        }
        other.has = has;
        other.said = Some(now);
        if self.own - other.has < self.ahead_max {
            other.given_up = false;
        }
    }

    /// Whether one more to all may be sent. If not, [`Self::on_deadline`] is to be called at
    /// [`Self::deadline`].
    pub(super) fn may_send(&mut self, now: Instant) -> bool {
        let (own, ahead_max) = (self.own, self.ahead_max);
        let mut waited_for = self.others.values().filter(|it| !it.given_up);
        let waits = waited_for.any(|other| own - other.has >= ahead_max);
        self.waiting = waits.then(|| self.waiting.unwrap_or(now));
        !waits
    }

    /// When somebody is waited for no more.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waiting = self.waiting?;
        let behind = self.others.values().filter(|it| self.is_behind(it));
        let since = behind.map(|it| it.said.map_or(waiting, |said| said.max(waiting)));
        since.min().map(|since| since + CREDIT_WAIT_MAX)
    }

    /// Gives up waiting for those that have said nothing for too long, and returns who they are.
    pub(super) fn on_deadline(&mut self, now: Instant) -> Vec<MemberId> {
        let Some(waiting) = self.waiting else {
            return Vec::new();
        };
        let mut given_up = Vec::new();
        let (own, ahead_max) = (self.own, self.ahead_max);
        for (member, other) in &mut self.others {
            let since = other.said.map_or(waiting, |said| said.max(waiting));
            let is_behind = !other.given_up && own - other.has >= ahead_max;
            if is_behind && now >= since + CREDIT_WAIT_MAX {
                other.given_up = true;
                given_up.push(member.clone());
            }
        }
        given_up
    }

    const fn is_behind(&self, other: &Other) -> bool {
        !other.given_up && self.own - other.has >= self.ahead_max
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way"
    )]
    fn start() -> Instant {
        Instant::now()
    }

    fn two() -> (Credit, [MemberId; 2]) {
        let members = ["b", "c"].map(MemberId::new);
        (Credit::new(ViewId::default(), members.iter()), members)
    }

    #[test]
    fn the_slowest_member_is_waited_for_but_not_for_long() {
        let now = start();
        let (mut credit, [b, c]) = two();
        let ahead_max = credit.ahead_max;
        for _ in 0..ahead_max {
            assert!(credit.may_send(now));
            credit.on_own();
        }
        assert!(!credit.may_send(now));
        credit.on_told(&b, ahead_max, now);
        assert!(!credit.may_send(now), "for c");
        // Who gets on is waited for on; who says that it does not, is not.
        let later = now + CREDIT_WAIT_MAX / 2;
        assert_eq!(credit.deadline(), Some(now + CREDIT_WAIT_MAX));
        credit.on_told(&c, 0, later);
        assert_eq!(credit.deadline(), Some(now + CREDIT_WAIT_MAX));
        credit.on_told(&c, 1, later);
        assert!(credit.may_send(later), "one more");
        credit.on_own();
        assert!(!credit.may_send(later));
        credit.on_told(&c, 1, later + CREDIT_WAIT_MAX / 4);
        assert_eq!(credit.on_deadline(now + CREDIT_WAIT_MAX), []);
        assert_eq!(credit.deadline(), Some(later + CREDIT_WAIT_MAX));
        let late = later + CREDIT_WAIT_MAX;
        assert_eq!(credit.on_deadline(late), std::slice::from_ref(&c));
        assert!(credit.may_send(late));
        assert_eq!(credit.deadline(), None);
        // It is waited for again when it has caught up.
        credit.on_own();
        credit.on_told(&c, 2, late);
        assert!(credit.may_send(late));
        credit.on_told(&c, 3, late);
        for _ in 1..ahead_max + 1 {
            credit.on_own();
        }
        credit.on_told(&b, ahead_max, late);
        assert!(!credit.may_send(late));
    }

    #[test]
    fn members_say_now_and_then_what_they_have_had() {
        let (mut credit, [b, _]) = two();
        let step = credit.ahead_max / 4;
        for n in 1..3 * step {
            let told = credit.on_other(&b);
            assert_eq!(told, (n % step == 0).then_some(n));
        }
        assert_eq!(credit.on_other(&MemberId::new("x")), None);
    }

    #[test]
    fn nobody_can_say_more_than_there_was() {
        let now = start();
        let (mut credit, [b, c]) = two();
        credit.on_told(&b, u64::MAX, now);
        credit.on_told(&c, 5, now + Duration::from_secs(1));
        for _ in 0..credit.ahead_max {
            credit.on_own();
        }
        assert!(!credit.may_send(now));
    }

    #[test]
    fn who_is_alone_waits_for_nobody() {
        let now = start();
        let mut credit = Credit::new(ViewId::default(), std::iter::empty());
        for _ in 0..10_000 {
            assert!(credit.may_send(now));
            credit.on_own();
        }
        assert_eq!(credit.deadline(), None);
    }
}
