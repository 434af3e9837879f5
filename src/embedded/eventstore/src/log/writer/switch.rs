//! Switching a system projection off and on, while the server runs and between two runs.
//!
//! Invariant: one that is switched on writes what it has missed before anything else is written, each
//! link once. Where one stopped stands in the file, so that it goes on there after a restart.

use rusqlite::OptionalExtension as _;

use super::{Bytes, NewEvent, SystemProjection, Told, Uuid, Writer};

/// How a projection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super::super) enum Projecting {
    /// It writes what it makes of every record with the record.
    Running,
    /// It was switched off.
    Stopped,
    /// It was switched off and has said nothing of how far it had come; here that is known all the same.
    Aborted,
}

/// Records that are caught up with at once: what is held of them beside the open transaction.
const PAGE: usize = 500;

impl Writer {
    /// Switches a projection. What it missed is in the log when this returns, and visible.
    pub(super) fn switch(&mut self, projection: SystemProjection, to: Projecting) -> rusqlite::Result<()> {
        let running = self.projections.contains(&projection);
        match (running, to) {
            (false, Projecting::Running) => {
                self.catch_up(projection)?;
                let others = self.projections.iter().copied();
                let all = others.chain([projection]);
                // In the order in which a node that starts with all of them has them.
                let all: Vec<_> = all.collect();
                self.projections = SystemProjection::ALL
                    .into_iter()
                    .filter(|one| all.contains(one))
                    .collect();
            }
            (true, Projecting::Stopped | Projecting::Aborted) => {
                self.stopped_at(projection, self.position)?;
                self.projections = self
                    .projections
                    .iter()
                    .copied()
                    .filter(|one| *one != projection)
                    .collect();
            }
            _ => {}
        }
        self.shared.stands(projection, to, self.position);
        Ok(())
    }

    fn catch_up(&mut self, projection: SystemProjection) -> rusqlite::Result<()> {
        let stopped: Option<u64> = self
            .connection
            .prepare_cached("SELECT stopped FROM projections WHERE name = ?1")?
            .query_row([projection.name()], |row| row.get(0))
            .optional()?;
        // One that is not said to have stopped has run until now.
        let Some(mut from) = stopped else { return Ok(()) };
        let end = self.position;
        let running = std::mem::replace(&mut self.projections, [projection].into());
        self.visible = self.position;
        // One transaction: either all of it is written and it no longer counts as stopped, or nothing.
        let written = self.begin().and_then(|()| {
            while let Some(next) = self.missed(from, end)? {
                from = next;
                self.project()?;
            }
            self.connection
                .execute("DELETE FROM projections WHERE name = ?1", [projection.name()])?;
            self.connection.execute_batch("COMMIT")
        });
        self.projections = running;
        self.told.clear();
        if written.is_err() {
            self.forget();
        } else if self.position > self.visible {
            self.shared.publish(&mut self.touched, self.last, self.position);
        }
        self.touched.clear();
        written
    }

    /// At a start: what runs now and did not run before catches up, and what no longer runs stops here.
    pub(super) fn go_on(&mut self) -> rusqlite::Result<()> {
        let running = std::mem::take(&mut self.projections);
        for projection in SystemProjection::ALL {
            if running.contains(&projection) {
                self.catch_up(projection)?;
            } else {
                self.stopped_at(projection, self.position)?;
            }
        }
        self.projections = running;
        Ok(())
    }

    /// Notes where a projection stopped, unless it had stopped before.
    fn stopped_at(&self, projection: SystemProjection, position: u64) -> rusqlite::Result<()> {
        let mut insert = self
            .connection
            .prepare_cached("INSERT OR IGNORE INTO projections (name, stopped) VALUES (?1, ?2)")?;
        insert.execute(rusqlite::params![projection.name(), position])?;
        Ok(())
    }

    /// Takes up the next records that it has missed; where to go on, while there is something.
    fn missed(&mut self, from: u64, end: u64) -> rusqlite::Result<Option<u64>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT e.position, s.name, e.revision, e.id, t.name, e.json, e.created, e.data, e.metadata
             FROM events e, streams s, types t
             WHERE e.position >= ?1 AND e.position < ?2 AND s.id = e.stream AND t.id = e.type
             ORDER BY e.position LIMIT ?3",
        )?;
        let rows = statement.query_map(rusqlite::params![from, end, PAGE as i64], |row| {
            let id: Option<[u8; 16]> = row.get(3)?;
            let bytes = |data: Option<Vec<u8>>| Bytes::from(data.unwrap_or_default());
            let (name, of_type): (String, String) = (row.get(1)?, row.get(4)?);
            Ok(Told {
                position: row.get(0)?,
                stream: name.into(),
                revision: row.get(2)?,
                created: row.get(6)?,
                event: NewEvent {
                    id: id.map_or_else(Uuid::nil, Uuid::from_bytes),
                    event_type: of_type.into(),
                    json: row.get(5)?,
                    data: bytes(row.get(7)?),
                    metadata: bytes(row.get(8)?),
                },
            })
        })?;
        let mut next = None;
        let mut told = Vec::new();
        for row in rows {
            let row = row?;
            next = Some(row.position + 1);
            if super::links::concerns_users(&row.stream) {
                told.push(row);
            }
        }
        drop(statement);
        self.told = told;
        Ok(next)
    }
}
