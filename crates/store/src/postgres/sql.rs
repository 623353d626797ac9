//! The statements.
//!
//! Each serves a whole batch: arrays in, one row an element out. Elements come sorted by address and
//! rows are locked one after the other in that order, so that two batches never wait for each other in
//! a ring. Each is a transaction of its own, with nothing kept in the session, so that a pooler may
//! give every statement another connection.

use tokio_postgres::types::Type;

/// A statement, and the types of its parameters.
pub struct Statement {
    pub name: &'static str,
    pub text: String,
    pub types: Vec<Type>,
}

/// All that run often.
pub struct Statements {
    pub claim: Statement,
    pub claim_new_within: Statement,
    pub claim_within: Statement,
    pub change: Statement,
    pub change_within: Statement,
    pub append: Statement,
    pub note: Statement,
    pub load: Statement,
    pub read: Statement,
    pub follow: Statement,
    pub ask: Statement,
    pub followed: Statement,
    pub show: Statement,
}

/// What stands before an owner's number in a notice that is for it.
pub const OWNER: &str = "owner ";

/// The server's clock, in milliseconds.
pub const SERVER_CLOCK: &str = "floor(extract(epoch FROM clock_timestamp()) * 1000)::int8";

/// The store's clock: the server's, unless a test gives the time.
pub fn clock(parameter: u32) -> String {
    format!("coalesce(${parameter}::int8, {SERVER_CLOCK})")
}

/// The columns that [`row`](super::calls::row) takes apart, from the second on.
pub const COLUMNS: &str =
    "o.address, o.id, o.epoch, o.claim, o.state, o.until, o.attempts, o.record, r.body";

/// A commit of this transaction is durable, whatever the server's default is. Another setting than
/// `off` is somebody's decision and stands.
pub const DURABLE: &str = "set_config('synchronous_commit', CASE current_setting('synchronous_commit') \
    WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true)";

/// Nobody waits for the disk: a crash may forget it.
pub const LAZY: &str = "set_config('synchronous_commit', 'off', true)";

impl Statements {
    pub fn new(schema: &str) -> Self {
        let channel = channel(schema);
        Self {
            claim: claim(schema),
            claim_new_within: claim_new_within(schema),
            claim_within: claim_within(schema),
            change: change(schema),
            change_within: change_within(schema),
            append: append(schema),
            note: note(schema),
            load: load(schema),
            read: read(schema),
            follow: follow(schema),
            ask: ask(schema, &channel),
            followed: followed(schema),
            show: show(schema, &channel),
        }
    }
}

/// The channel on which gateways that share a schema tell each other to look.
pub fn channel(schema: &str) -> String {
    format!("onlyonce_{schema}")
}

fn statement(name: &'static str, text: String, types: &[Type]) -> Statement {
    Statement {
        name,
        text,
        types: types.to_vec(),
    }
}

/// A claim of a key of which nothing counts: a new row, or one in the place of what has expired. Gives
/// the addresses that were claimed, and whether the row is a new one.
fn claim(schema: &str) -> Statement {
    let (ctes, last) = claiming(schema, OVER_EXPIRED);
    let text = format!("WITH {}, {ctes} {last}", setting(7));
    statement("claim", text, &CLAIM_TYPES)
}

/// The same within a transaction of the caller's, who waits as long as `$9` says.
fn claim_within(schema: &str) -> Statement {
    let text = within(7, 9, claiming(schema, OVER_EXPIRED));
    statement("claim_within", text, &patient(&CLAIM_TYPES))
}

/// The same where a look has found nothing. Who loses has no lock on the row of who has won, and keeps
/// nobody waiting.
fn claim_new_within(schema: &str) -> Statement {
    let text = within(7, 9, claiming(schema, "NOTHING"));
    statement("claim_new_within", text, &patient(&CLAIM_TYPES))
}

const CLAIM_TYPES: [Type; 8] = [
    Type::UUID_ARRAY,
    Type::UUID_ARRAY,
    Type::INT8_ARRAY,
    Type::INT4_ARRAY,
    Type::INT4_ARRAY,
    Type::BYTEA_ARRAY,
    Type::INT8,
    Type::BYTEA_ARRAY,
];

const OVER_EXPIRED: &str = "UPDATE SET id = excluded.id, epoch = 1, claim = 1,
            until = excluded.until, period = excluded.period, attempts = excluded.attempts,
            executing = excluded.executing, chunks = 0, tenant_tag = excluded.tenant_tag,
            state = 1, beside = false,
            record = excluded.record, attempt = excluded.attempt
        WHERE o.state IN (2, 4) AND o.until <= (SELECT now FROM setting)";

/// What claims, and what it is made of; on a conflict it does `otherwise`.
fn claiming(schema: &str, otherwise: &str) -> (String, String) {
    let wanted = "wanted AS (
            SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int8[], $4::int4[], $5::int4[],
                $6::bytea[], $8::bytea[])
            AS w (address, id, until, period, tenant_tag, record, attempt)
        )";
    let last = format!(
        "INSERT INTO {schema}.operations AS o (address, id, epoch, claim, until, period, attempts,
            executing, tenant_tag, state, record, attempt)
        SELECT address, id, 1, 1, until, period, (attempt IS NOT NULL)::int4,
            (attempt IS NOT NULL)::int4, tenant_tag, 1, record, attempt
        FROM wanted, setting ORDER BY address
        ON CONFLICT (address) DO {otherwise}
        RETURNING address, (o.xmax = 0) AS is_new"
    );
    (wanted.to_owned(), last)
}

/// The moment, which may be given as `$now`; and the commit is durable.
fn setting(now: u32) -> String {
    let now = clock(now);
    format!("setting AS MATERIALIZED (SELECT {now} AS now, {DURABLE})")
}

/// A statement that waits for the locks of others no longer than `$patience` says, within a transaction that
/// goes on after it with the lock time-out that it had. Each row has the number of the transaction before its
/// own columns; where there is no row, that alone.
///
/// Nothing is read from `setting` before all of it is evaluated; and what is put back is so once `done` was
/// counted, hence run.
fn within(now: u32, patience: u32, (ctes, last): (String, String)) -> String {
    let now = clock(now);
    format!(
        "WITH setting AS MATERIALIZED (SELECT {now} AS now, {DURABLE},
            current_setting('lock_timeout') AS lock_timeout,
            set_config('lock_timeout', ${patience}, true)),
        {ctes},
        done AS MATERIALIZED ({last}),
        after AS MATERIALIZED (
            SELECT pg_current_xact_id()::text::int8 AS xid,
                set_config('lock_timeout', lock_timeout, true)
            FROM setting WHERE (SELECT count(*) FROM done) >= 0
        )
        SELECT a.xid, d.* FROM after a LEFT JOIN done d ON true"
    )
}

/// The types of a statement whose last parameter says how long it waits.
fn patient(types: &[Type]) -> Vec<Type> {
    [types, &[Type::TEXT]].concat()
}

/// A compare-and-set of a record that counts. Gives, for each whose fence stood, the state and the
/// claim that were found, whether it was written, and the attempts. What is not an arrow of the
/// protocol is not written, whoever asks (I8). What is written takes its entry along to the books.
fn change(schema: &str) -> Statement {
    let (ctes, last) = changing(schema);
    let text = format!("WITH {}, {ctes} {last}", setting(13));
    statement("change", text, &CHANGE_TYPES)
}

/// The same within a transaction of the caller's, who waits as long as `$21` says.
fn change_within(schema: &str) -> Statement {
    let text = within(13, 21, changing(schema));
    statement("change_within", text, &patient(&CHANGE_TYPES))
}

const CHANGE_TYPES: [Type; 20] = [
    Type::UUID_ARRAY,
    Type::UUID_ARRAY,
    Type::INT8_ARRAY,
    Type::INT8_ARRAY,
    Type::INT8_ARRAY,
    Type::INT2_ARRAY,
    Type::INT8_ARRAY,
    Type::INT4_ARRAY,
    Type::BYTEA_ARRAY,
    Type::BYTEA_ARRAY,
    Type::BYTEA_ARRAY,
    Type::INT4_ARRAY,
    Type::INT8,
    Type::INT4_ARRAY,
    Type::INT8_ARRAY,
    Type::INT4_ARRAY,
    Type::INT4_ARRAY,
    Type::INT4_ARRAY,
    Type::BYTEA_ARRAY,
    Type::INT4_ARRAY,
];

fn changing(schema: &str) -> (String, String) {
    let ctes = format!(
        "wanted AS (
            SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int8[], $4::int8[], $5::int8[],
                $6::int2[], $7::int8[], $8::int4[], $9::bytea[], $10::bytea[], $11::bytea[],
                $12::int4[], $14::int4[], $15::int8[], $16::int4[], $17::int4[], $18::int4[],
                $19::bytea[], $20::int4[])
            AS w (address, id, expected, epoch, claim, state, until, period, record, body, attempt,
                chunks, day, at, tenant_tag, route_tag, model_tag, entry, n)
        ),
        held AS MATERIALIZED (
            SELECT w.*, o.state AS old_state, o.claim AS old_claim, o.attempt AS old_attempt,
                o.executing AS old_executing,
                o.state = 1 AND w.claim = o.claim OR o.state = 3 AND w.state <> 3
                    OR o.state = 4 AND w.state = 1 AS lawful
            FROM setting, wanted w, LATERAL (
                SELECT * FROM {schema}.operations o
                WHERE o.address = w.address AND o.id = w.id AND o.epoch = w.expected
                    AND (o.state IN (1, 3) OR o.until > setting.now)
                FOR UPDATE
            ) o
        ),
        changed AS (
            UPDATE {schema}.operations o SET
                epoch = h.epoch, claim = h.claim, state = h.state, until = h.until,
                period = CASE WHEN o.beside THEN o.period ELSE h.period END,
                attempts = o.attempts + (h.attempt IS NOT NULL)::int4,
                executing = CASE WHEN h.attempt IS NULL THEN o.executing ELSE o.attempts + 1 END,
                chunks = coalesce(h.chunks, 0),
                beside = o.beside OR h.attempt IS NOT NULL AND o.attempt IS NOT NULL,
                record = h.record,
                attempt = CASE WHEN h.state = 2 THEN NULL ELSE coalesce(h.attempt, o.attempt) END
            FROM held h WHERE o.address = h.address AND h.lawful
            RETURNING o.address, o.period, o.attempts
        ),
        kept AS (
            INSERT INTO {schema}.records (period, id, body, attempt)
            SELECT c.period, h.id, h.body, h.old_attempt
            FROM changed c JOIN held h USING (address) WHERE h.body IS NOT NULL
        ),
        entered AS (
            INSERT INTO {schema}.ledger (n, day, id, at, tenant_tag, route_tag, model_tag, entry)
            SELECT h.n, greatest(h.day, s.from_day), h.id, h.at, h.tenant_tag, h.route_tag,
                h.model_tag, h.entry
            FROM {schema}.store s, changed c JOIN held h USING (address)
            WHERE h.entry IS NOT NULL
        ),
        former AS (
            INSERT INTO {schema}.attempts (period, id, slot, number, note)
            SELECT c.period, h.id, h.old_executing % 128, h.old_executing, h.old_attempt
            FROM changed c JOIN held h USING (address)
            WHERE h.attempt IS NOT NULL AND h.old_attempt IS NOT NULL
            ON CONFLICT (period, id, slot) DO UPDATE
                SET number = excluded.number, note = excluded.note
        )"
    );
    let last = "SELECT h.address, h.old_state, h.old_claim, c.attempts
        FROM held h LEFT JOIN changed c USING (address)";
    (ctes, last.to_owned())
}

/// Adds chunks to recordings whose claim stands; gives the addresses of those.
fn append(schema: &str) -> Statement {
    let text = format!(
        "WITH setting AS MATERIALIZED (SELECT {DURABLE}),
        wanted AS (
            SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int8[], $4::int4[], $5::bytea[])
            AS w (address, id, claim, number, bytes)
        ),
        held AS MATERIALIZED (
            SELECT w.*, o.period, o.beside FROM setting, wanted w, LATERAL (
                SELECT * FROM {schema}.operations o
                WHERE o.address = w.address AND o.id = w.id AND o.claim = w.claim
                    AND o.state IN (1, 3)
                FOR UPDATE
            ) o
        ),
        changed AS (
            UPDATE {schema}.operations o SET beside = true
            FROM held h WHERE o.address = h.address AND NOT h.beside
        ),
        kept AS (
            INSERT INTO {schema}.chunks (period, id, claim, number, bytes)
            SELECT period, id, claim, number, bytes FROM held
            ON CONFLICT (period, id, claim, number) DO UPDATE SET bytes = excluded.bytes
        )
        SELECT address FROM held"
    );
    let types = [
        Type::UUID_ARRAY,
        Type::UUID_ARRAY,
        Type::INT8_ARRAY,
        Type::INT4_ARRAY,
        Type::BYTEA_ARRAY,
    ];
    statement("append", text, &types)
}

/// Notes attempts: `$3` of each operation, whose notes follow in `$4` to `$7`. Gives, for each
/// operation that is held, the attempts that there are now.
fn note(schema: &str) -> Statement {
    let text = format!(
        "WITH setting AS MATERIALIZED (SELECT {LAZY}),
        wanted AS (
            SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int4[]) AS w (address, id, count)
        ),
        held AS MATERIALIZED (
            SELECT w.* FROM setting, wanted w, LATERAL (
                SELECT * FROM {schema}.operations o
                WHERE o.address = w.address AND o.id = w.id
                FOR UPDATE
            ) o
        ),
        changed AS (
            UPDATE {schema}.operations o SET attempts = o.attempts + h.count, beside = true
            FROM held h WHERE o.address = h.address
            RETURNING o.address, o.id, o.period, o.attempts, h.count
        ),
        kept AS (
            INSERT INTO {schema}.attempts AS a (period, id, slot, number, note)
            SELECT c.period, c.id, (c.attempts - c.count + n.place) % 128,
                c.attempts - c.count + n.place, n.note
            FROM unnest($4::uuid[], $5::uuid[], $6::int4[], $7::bytea[])
                AS n (address, id, place, note)
            JOIN changed c USING (address, id)
            ON CONFLICT (period, id, slot) DO UPDATE
                SET number = excluded.number, note = excluded.note
                WHERE excluded.number > a.number
        )
        SELECT address, attempts, id FROM changed"
    );
    let types = [
        Type::UUID_ARRAY,
        Type::UUID_ARRAY,
        Type::INT4_ARRAY,
        Type::UUID_ARRAY,
        Type::UUID_ARRAY,
        Type::INT4_ARRAY,
        Type::BYTEA_ARRAY,
    ];
    statement("note", text, &types)
}

/// Records as they stand.
fn load(schema: &str) -> Statement {
    let text = format!(
        "SELECT {COLUMNS}
        FROM unnest($1::uuid[]) AS w (address)
        JOIN {schema}.operations o USING (address)
        LEFT JOIN {schema}.records r ON o.state = 2 AND r.period = o.period AND r.id = o.id"
    );
    statement("load", text, &[Type::UUID_ARRAY])
}

/// Chunks of recordings that stand; `$5` numbers the elements.
fn read(schema: &str) -> Statement {
    let text = format!(
        "SELECT w.place, o.state, o.chunks, c.bytes
        FROM unnest($1::uuid[], $2::uuid[], $3::int8[], $4::int4[], $5::int4[])
            AS w (address, id, claim, number, place)
        JOIN {schema}.operations o
            ON o.address = w.address AND o.id = w.id AND o.claim = w.claim
        LEFT JOIN {schema}.chunks c ON c.period = o.period AND c.id = o.id AND c.claim = o.claim
            AND c.number = w.number AND (o.state <> 2 OR w.number < o.chunks - 1)"
    );
    let types = [
        Type::UUID_ARRAY,
        Type::UUID_ARRAY,
        Type::INT8_ARRAY,
        Type::INT4_ARRAY,
        Type::INT4_ARRAY,
    ];
    statement("read", text, &types)
}

/// A completed record that counts becomes the unknown one `$4`, under the fence that it has; its attempt
/// moves back beside it. Runs so seldom that it is not prepared.
pub fn spoil(schema: &str) -> Statement {
    let now = clock(5);
    let text = format!(
        "WITH setting AS MATERIALIZED (SELECT {now} AS now, {DURABLE}),
        held AS MATERIALIZED (
            SELECT o.address, o.id, o.period FROM setting, LATERAL (
                SELECT * FROM {schema}.operations o
                WHERE o.address = $1 AND o.id = $2 AND o.epoch = $3 AND o.state = 2
                    AND o.until > setting.now
                FOR UPDATE
            ) o
        ),
        former AS (
            DELETE FROM {schema}.records r USING held h
            WHERE r.period = h.period AND r.id = h.id
            RETURNING r.attempt
        )
        UPDATE {schema}.operations o SET state = 3, until = NULL, chunks = 0, record = $4,
            attempt = (SELECT attempt FROM former)
        FROM held h WHERE o.address = h.address"
    );
    let types = [Type::UUID, Type::UUID, Type::INT8, Type::BYTEA, Type::INT8];
    statement("spoil", text, &types)
}

/// What is shown of recordings: a row a frame that was not seen whole, in order, and at least one where
/// anything is shown at all; `$6` numbers the elements. These tables grow and shrink faster than their
/// statistics follow, and a look is at a few rows: what is `OFFSET 0` is looked up row by row, by its index.
fn follow(schema: &str) -> Statement {
    let text = format!(
        "SELECT w.place, t.in_chunks, t.ended, CASE WHEN NOT w.seen_head THEN t.head END,
            f.begins_at, f.bytes
        FROM unnest($1::uuid[], $2::uuid[], $3::int8[], $4::bool[], $5::int8[], $6::int4[])
            AS w (address, id, claim, seen_head, seen, place)
        CROSS JOIN LATERAL (
            SELECT * FROM {schema}.tails t
            WHERE t.address = w.address AND t.id = w.id AND t.claim = w.claim OFFSET 0
        ) t
        LEFT JOIN LATERAL (
            SELECT * FROM {schema}.frames f
            WHERE f.address = w.address AND f.id = w.id AND f.claim = w.claim
                AND f.ends_at > greatest(w.seen, t.in_chunks) OFFSET 0
        ) f ON true
        ORDER BY w.place, f.begins_at"
    );
    let types = [
        Type::UUID_ARRAY,
        Type::UUID_ARRAY,
        Type::INT8_ARRAY,
        Type::BOOL_ARRAY,
        Type::INT8_ARRAY,
        Type::INT4_ARRAY,
    ];
    statement("follow", text, &types)
}

/// Asks owners to show recordings, and tells those who were not asked yet. Whoever heard and shows
/// nothing is asked again after a while: what it heard may have been lost on its way.
fn ask(schema: &str, channel: &str) -> Statement {
    let now = clock(5);
    let text = format!(
        "WITH setting AS MATERIALIZED (SELECT {now} AS now, {LAZY}),
        asked AS (
            INSERT INTO {schema}.follows AS f (owner, address, id, claim, asked_at, heard)
            SELECT owner, address, id, claim, now, false
            FROM setting, unnest($1::int8[], $2::uuid[], $3::uuid[], $4::int8[])
                AS w (owner, address, id, claim)
            ORDER BY owner, address
            ON CONFLICT (owner, address) DO UPDATE SET id = excluded.id, claim = excluded.claim,
                asked_at = excluded.asked_at, heard = false
            WHERE f.heard AND (f.asked_at <= excluded.asked_at - 2000
                OR (f.id, f.claim) <> (excluded.id, excluded.claim))
            RETURNING owner, address
        )
        SELECT pg_notify('{channel}', '{OWNER}' || owner || ' ' || address) IS NULL FROM asked"
    );
    let types = [
        Type::INT8_ARRAY,
        Type::UUID_ARRAY,
        Type::UUID_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8,
    ];
    statement("ask", text, &types)
}

/// What owners are asked to show and have not heard of yet.
fn followed(schema: &str) -> Statement {
    let text = format!(
        "WITH setting AS MATERIALIZED (SELECT {LAZY}),
        unheard AS MATERIALIZED (
            SELECT f.owner, f.address FROM setting, {schema}.follows f
            WHERE f.owner = ANY ($1::int8[]) AND NOT f.heard
            ORDER BY f.owner, f.address FOR UPDATE OF f
        )
        UPDATE {schema}.follows f SET heard = true
        FROM unheard u WHERE f.owner = u.owner AND f.address = u.address
        RETURNING f.owner, f.address"
    );
    statement("followed", text, &[Type::INT8_ARRAY])
}

/// Shows more of recordings, unless a later claim of the same operation, or a later operation, is shown
/// there already (I9), and tells those who wait.
fn show(schema: &str, channel: &str) -> Statement {
    let now = clock(10);
    let same = "(t.id, t.claim) = (excluded.id, excluded.claim)";
    let text = format!(
        "WITH setting AS MATERIALIZED (SELECT {now} AS now, {LAZY}),
        wanted AS (
            SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int8[], $4::bytea[], $5::int8[],
                $6::bool[], $7::int8[], $8::int8[], $9::bytea[])
            AS w (address, id, claim, head, in_chunks, ended, begins_at, ends_at, bytes)
        ),
        shown AS (
            INSERT INTO {schema}.tails AS t (address, id, claim, in_chunks, shown_at, ended, head)
            SELECT address, id, claim, in_chunks, now, ended, head FROM wanted, setting
            ORDER BY address
            ON CONFLICT (address) DO UPDATE SET id = excluded.id, claim = excluded.claim,
                in_chunks = CASE WHEN {same} THEN greatest(t.in_chunks, excluded.in_chunks)
                    ELSE excluded.in_chunks END,
                shown_at = excluded.shown_at,
                ended = excluded.ended OR {same} AND t.ended,
                head = CASE WHEN {same} THEN coalesce(excluded.head, t.head)
                    ELSE excluded.head END
            WHERE (t.id, t.claim) <= (excluded.id, excluded.claim)
            RETURNING address, id, claim, in_chunks
        ),
        kept AS (
            INSERT INTO {schema}.frames (address, id, claim, begins_at, ends_at, bytes)
            SELECT s.address, s.id, s.claim, w.begins_at, w.ends_at, w.bytes
            FROM shown s JOIN wanted w USING (address)
            WHERE w.ends_at > greatest(w.begins_at, s.in_chunks)
            ON CONFLICT (address, id, claim, begins_at) DO UPDATE
                SET ends_at = excluded.ends_at, bytes = excluded.bytes
        ),
        past AS (
            DELETE FROM {schema}.frames WHERE ctid = ANY (ARRAY(
                SELECT f.ctid FROM shown s, LATERAL (
                    SELECT f.ctid FROM {schema}.frames f
                    WHERE f.address = s.address
                        AND ((f.id, f.claim) <> (s.id, s.claim) OR f.ends_at <= s.in_chunks)
                    OFFSET 0
                ) f
            ))
        )
        SELECT pg_notify('{channel}', address::text) IS NULL FROM shown"
    );
    let types = [
        Type::UUID_ARRAY,
        Type::UUID_ARRAY,
        Type::INT8_ARRAY,
        Type::BYTEA_ARRAY,
        Type::INT8_ARRAY,
        Type::BOOL_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::BYTEA_ARRAY,
        Type::INT8,
    ];
    statement("show", text, &types)
}
