//! What happens to the servers and the lines: cuts, restarts, promotions.

use std::time::Duration;

use super::{By, Timestamp, World, skews};
use crate::{KEYS, OWNERS, models::Forgets};

/// How far the clock of the next server may be off, in seconds.
const CLOCK_MOVES: usize = 20;

impl World {
    /// Something happens to the store, or on the way to it.
    pub fn something_happens(&mut self) {
        match self.random.below(100) {
            0..50 => self.serve(),
            50..58 => self.line_is_cut(),
            58..70 => self.line_mends(),
            70..78 => self.clock_is_measured(),
            78..82 => self.slot_goes_or_comes(),
            82..86 => self.standby_goes_or_comes(),
            86..92 => self.server_restarts(),
            92..96 => self.next_server_takes_over(),
            // What was written so far has reached the disk, or the replica.
            _ if !self.standby_away => self.safe = self.commits.len(),
            _ => {}
        }
    }

    /// No more faults, and what is under way arrives.
    pub fn calms_down(&mut self) {
        self.faults = false;
        self.out_of_reach = [false; KEYS];
        self.standby_away = false;
        for line in &mut self.lines {
            line.cut = false;
            line.former = None;
            line.skew = 0;
        }
        while !self.wire.is_empty() {
            self.serve();
        }
    }

    /// The power goes. Of what was on its way to the disk, only the first writes are there.
    pub fn power_is_cut(&mut self) {
        self.coverage.count("the power is cut");
        let under_way = std::mem::take(&mut self.wire);
        let kept = self.random.below(under_way.len() + 1);
        if kept < under_way.len() {
            self.coverage.count("the power takes what was not synced");
        }
        self.note(|| {
            format!(
                "the power is cut: {kept} of {} writes are kept",
                under_way.len()
            )
        });
        self.commits(&under_way[..kept], false);
        self.late.clear();
    }

    /// The embedded store reads the machine's clock when it starts, and never again.
    pub fn clock_is_set_meanwhile(&mut self) {
        if self.random.chance(30) {
            self.coverage.count("the clock was set while nothing ran");
            self.clock_moves();
        }
    }

    fn line_is_cut(&mut self) {
        let gateway = self.random.below(OWNERS);
        self.lines[gateway].cut = true;
        self.coverage.count("a gateway is cut off from the store");
        self.note(|| format!("gateway {gateway} is cut off"));
    }

    fn line_mends(&mut self) {
        let gateway = self.random.below(OWNERS);
        let line = &mut self.lines[gateway];
        line.cut = false;
        line.former = None;
        self.note(|| format!("the line of gateway {gateway} is good"));
    }

    fn clock_is_measured(&mut self) {
        let gateway = self.random.below(OWNERS);
        let span = skews(self.model);
        let width = usize::try_from(span.end() - span.start()).unwrap_or(0) + 1;
        let skew = span.start() + self.random.below(width) as i64;
        self.lines[gateway].skew = skew;
    }

    fn slot_goes_or_comes(&mut self) {
        if !self.model.slots_fail {
            return;
        }
        let key = self.random.below(KEYS);
        self.out_of_reach[key] = !self.out_of_reach[key];
        let is_out = self.out_of_reach[key];
        self.coverage.count("a slot is out of reach");
        self.note(|| format!("key {key} is out of reach: {is_out}"));
    }

    fn standby_goes_or_comes(&mut self) {
        if self.model.forgets != Forgets::Unacknowledged {
            return;
        }
        self.standby_away = !self.standby_away;
        let is_away = self.standby_away;
        // What waits on either side is replicated before anything is acknowledged.
        self.safe = self.commits.len();
        self.note(|| format!("the standby is away: {is_away}"));
    }

    /// The server is killed and comes back.
    fn server_restarts(&mut self) {
        self.coverage.count("the server restarts");
        self.note(|| "the server restarts".into());
        while !self.wire.is_empty() {
            let batch = self.batch(0);
            if self.random.chance(50) {
                if self.standby_away {
                    self.coverage.count("what waits for a standby can be read");
                }
                self.commits(&batch, false);
            } else {
                self.rolls_back(&batch);
            }
        }
        let late = std::mem::take(&mut self.late);
        for writes in late {
            match self.standby_away && self.random.chance(50) {
                true => self.commits(&writes, false),
                false => self.late.push(writes),
            }
        }
        if self.model.restart_forgets {
            self.forgets_the_latest();
        }
        self.lines_break();
    }

    /// A standby is promoted, or a replica takes over.
    fn next_server_takes_over(&mut self) {
        self.coverage.count("a failover");
        self.note(|| "a failover".into());
        let former = self.visible;
        while !self.wire.is_empty() {
            let batch = self.batch(0);
            // With the standby away, it has none of them.
            match self.random.chance(50) && !self.standby_away {
                true => self.commits(&batch, false),
                false => self.rolls_back(&batch),
            }
        }
        // What was on its way to the former server goes nowhere.
        let late = std::mem::take(&mut self.late);
        for writes in late {
            if self.random.chance(50) {
                self.late.push(writes);
            }
        }
        match self.model.forgets {
            Forgets::Nothing => {}
            Forgets::Unacknowledged if self.standby_away => self.forget(self.safe),
            Forgets::Unacknowledged => {}
            Forgets::TheLatest => self.forgets_the_latest(),
        }
        self.standby_away = false;
        self.safe = self.commits.len();
        if self.model.clock_moves {
            self.clock_moves();
        }
        for gateway in 0..OWNERS {
            if self.model.stale_reads && self.random.chance(30) {
                self.lines[gateway].former = Some(former);
                self.note(|| format!("gateway {gateway} reads from the former primary"));
            }
        }
        self.lines_break();
    }

    fn lines_break(&mut self) {
        for gateway in 0..OWNERS {
            if self.random.chance(20) {
                self.lines[gateway].cut = true;
            }
        }
    }

    fn clock_moves(&mut self) {
        let seconds = self.random.below(2 * CLOCK_MOVES + 1) as i64 - CLOCK_MOVES as i64;
        let millis = self.now.as_millis().saturating_add_signed(1_000 * seconds);
        self.now = Timestamp::from_millis(millis);
        let span = Duration::from_secs(seconds.unsigned_abs());
        self.reference.clock_is_moved(span, self.now);
        self.note(|| format!("the clock was moved by {seconds} s"));
    }

    fn forgets_the_latest(&mut self) {
        let most = self.commits.len() - self.safe;
        let lost = self.random.below(most + 1);
        self.forget(self.commits.len() - lost);
    }

    /// Forgets all commits but the first `kept`.
    fn forget(&mut self, kept: usize) {
        self.timeline += u64::from(kept < self.commits.len());
        self.note(|| format!("forgotten: all after commit {kept}"));
        while self.commits.len() > kept {
            let commit = self.commits.pop().expect("there are more");
            let version = self.visible[commit.key];
            self.forgotten.extend(self.records[version].clone());
            self.visible[commit.key] = commit.before;
            self.count_forgotten(commit.by, commit.acknowledged);
        }
        self.reference.forget(kept, &self.visible);
        for key in 0..KEYS {
            self.reference.check(key, self.slot(key));
        }
    }

    fn count_forgotten(&mut self, by: By, acknowledged: bool) {
        if !acknowledged {
            self.coverage
                .count("forgotten: a write that was not acknowledged");
            return;
        }
        assert_eq!(
            self.model.forgets,
            Forgets::TheLatest,
            "an acknowledged write is forgotten"
        );
        self.coverage.count(match by {
            By::Claim { .. } => "forgotten: an acknowledged claim",
            By::Completion(..) => "forgotten: an acknowledged completion",
            _ => "forgotten: another acknowledged write",
        });
    }
}
