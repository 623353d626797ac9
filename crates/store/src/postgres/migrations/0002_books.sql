-- Tables of before the first release say it by a column that was dropped since. Keys have other addresses in
-- them, so that all used keys would look new.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = 'operations'::regclass AND attname = 'key_tag'
    ) THEN
        RAISE EXCEPTION 'its tables are of a program of before the first release, which finds keys elsewhere; '
            'drop the schema, or name another one in store.url';
    END IF;
END
$$;

-- What the books are told of each completed operation: a row an operation, written in the statement that
-- completes it and never changed. The day of its completion names its partition, or a later day where that
-- one is closed.
--
-- Rows stand in the order of their transactions, which is not that of their commits: what is at or above the
-- horizon of a snapshot (pg_snapshot_xmin) may still be overtaken by a lower one, and is not looked at yet.
CREATE TABLE ledger (
    -- The number of the transaction, and what is to be added to that: numbers begin anew in another cluster,
    -- and then a number is added in this default, and in books.
    xid int8 NOT NULL DEFAULT pg_current_xact_id()::text::int8 + 0,
    id uuid NOT NULL,
    at int8 NOT NULL,
    -- Within its transaction.
    n int4 NOT NULL,
    day int4 NOT NULL,
    -- Short keyed hashes, by which pages pass over most of what they do not want.
    tenant_tag int4 NOT NULL,
    route_tag int4 NOT NULL,
    model_tag int4 NOT NULL,
    entry bytea NOT NULL
) PARTITION BY LIST (day);
ALTER TABLE ledger ALTER entry SET STORAGE EXTERNAL;
CREATE INDEX ledger_place ON ledger (xid, n);

-- The partitions that there are. A day that is over is closed when all in it is booked: a constraint then
-- refuses what comes late, and it ends at or before a known place. So nobody who looks for what is new looks
-- at all days.
CREATE TABLE ledger_days (
    day int4 PRIMARY KEY,
    end_xid int8,
    end_n int4
);
-- The first day that is not closed. Every statement that completes something looks at it, so it stands in a row
-- that hardly ever changes.
ALTER TABLE store ADD from_day int4 NOT NULL DEFAULT 0;

-- How far the books are: what stands up to the mark is in the sums, and is shown.
CREATE TABLE books (
    only_row bool PRIMARY KEY DEFAULT true CHECK (only_row),
    shift int8 NOT NULL DEFAULT 0,
    mark_xid int8 NOT NULL DEFAULT 0,
    mark_n int4 NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
INSERT INTO books DEFAULT VALUES;

-- Sums of an account in a period, and of all accounts together, with no names. Names are bytes in UTF-8,
-- so that every name of every length or alphabet is one in every database.
CREATE TABLE sums (
    -- 1 an hour, 2 a day.
    grain int2 NOT NULL,
    together bool NOT NULL,
    period int8 NOT NULL,
    tenant bytea NOT NULL,
    route bytea NOT NULL,
    provider bytea NOT NULL,
    model bytea NOT NULL,
    operations int8 NOT NULL,
    unmetered int8 NOT NULL,
    unpriced int8 NOT NULL,
    cost int8 NOT NULL,
    input int8 NOT NULL,
    output int8 NOT NULL,
    cache_read int8 NOT NULL,
    cache_write int8 NOT NULL,
    reasoning int8 NOT NULL,
    joined int8 NOT NULL,
    replayed int8 NOT NULL,
    saved int8 NOT NULL,
    saved_input int8 NOT NULL,
    saved_output int8 NOT NULL,
    PRIMARY KEY (grain, together, period, tenant, route, provider, model)
) WITH (fillfactor = 50);

-- How far each sink was delivered to (nothing yet where that is NULL), and who does it.
CREATE TABLE sinks (
    sink text COLLATE "C" PRIMARY KEY,
    owner int8 NOT NULL,
    held_until int8 NOT NULL,
    xid int8,
    n int4
) WITH (fillfactor = 50);

-- What a sink did not take.
CREATE TABLE dead (
    sink text COLLATE "C" NOT NULL,
    id uuid NOT NULL,
    -- The entry, when and after how many tries it was given up, and what the sink said last.
    letter bytea NOT NULL,
    PRIMARY KEY (sink, id)
);
ALTER TABLE dead ALTER letter SET STORAGE EXTERNAL;
