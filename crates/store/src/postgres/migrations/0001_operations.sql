-- The one row that says which store this is.
CREATE TABLE store (
    only_row bool PRIMARY KEY DEFAULT true CHECK (only_row),
    id uuid NOT NULL,
    -- Under which addresses and fingerprints are hashed; sealed where an encryption key is configured.
    secret bytea NOT NULL,
    sealed bool NOT NULL,
    -- What it is marked as, while its records move to another store or come from one.
    mark text
);

-- One thin row an operation, unique by its address. It holds what a compare-and-set looks at, and the
-- record itself while the operation is not completed. Times are milliseconds since 1970.
CREATE TABLE operations (
    address uuid PRIMARY KEY,
    id uuid NOT NULL,
    epoch int8 NOT NULL,
    -- The epoch of the current claim: it names the recording.
    claim int8 NOT NULL,
    -- In flight: the end of the lease. Completed, released: when it expires. Unknown: never.
    until int8,
    -- In which partition its record, chunks and attempts lie, or will lie.
    period int4 NOT NULL,
    attempts int4 NOT NULL,
    -- The number of the attempt that executes.
    executing int4 NOT NULL,
    -- Of a completed record.
    chunks int4 NOT NULL DEFAULT 0,
    -- A short keyed hash, by which lists pass over most of what they do not want.
    tenant_tag int4 NOT NULL,
    -- 1 in flight, 2 completed, 3 unknown, 4 released.
    state int2 NOT NULL,
    -- Whether chunks or attempts of it lie in its partition.
    beside bool NOT NULL DEFAULT false,
    record bytea,
    attempt bytea
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 1,
    autovacuum_analyze_scale_factor = 0.05
);
-- What is stored is packed, and may be sealed: the server need not try to compress it.
ALTER TABLE operations ALTER record SET STORAGE EXTERNAL, ALTER attempt SET STORAGE EXTERNAL;
-- Claims are refused where the records move to another store. The triggers are off until then. To switch them
-- on takes a lock that waits for every claim under way, and every later one runs into them: also those
-- of a gateway that was paused. A first claim is an insert; a later one gives the row another claim or id.
CREATE FUNCTION refuse_claim() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    mark text;
BEGIN
    -- Among what else is written in the same statement, it is left out.
    IF TG_OP = 'UPDATE' THEN
        RETURN NULL;
    END IF;
    EXECUTE format('SELECT mark FROM %I.store', TG_TABLE_SCHEMA) INTO mark;
    RAISE EXCEPTION 'its records %', coalesce(mark, 'were to move');
END
$$;
CREATE TRIGGER refuse_first_claim BEFORE INSERT ON operations
    FOR EACH ROW EXECUTE FUNCTION refuse_claim();
CREATE TRIGGER refuse_later_claim BEFORE UPDATE ON operations
    FOR EACH ROW WHEN (NEW.claim <> OLD.claim OR NEW.id <> OLD.id)
    EXECUTE FUNCTION refuse_claim();
ALTER TABLE operations DISABLE TRIGGER refuse_first_claim, DISABLE TRIGGER refuse_later_claim;

CREATE INDEX operations_id ON operations (id);
-- What is overdue, what has expired, and the few that run or are unknown among the many that are over.
CREATE INDEX operations_state ON operations (state, until);

-- What is fat, in partitions that are dropped whole when all that counts in them has expired.
CREATE TABLE records (
    period int4 NOT NULL,
    id uuid NOT NULL,
    -- The record and the last chunk.
    body bytea NOT NULL,
    attempt bytea,
    PRIMARY KEY (period, id)
) PARTITION BY LIST (period);
ALTER TABLE records ALTER body SET STORAGE EXTERNAL, ALTER attempt SET STORAGE EXTERNAL;

CREATE TABLE chunks (
    period int4 NOT NULL,
    id uuid NOT NULL,
    claim int8 NOT NULL,
    number int4 NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (period, id, claim, number)
) PARTITION BY LIST (period);
ALTER TABLE chunks ALTER bytes SET STORAGE EXTERNAL;

-- A ring for each operation: a slot is used again by a later attempt.
CREATE TABLE attempts (
    period int4 NOT NULL,
    id uuid NOT NULL,
    slot int2 NOT NULL,
    number int4 NOT NULL,
    note bytea NOT NULL,
    PRIMARY KEY (period, id, slot)
) PARTITION BY LIST (period);
ALTER TABLE attempts ALTER note SET STORAGE EXTERNAL;

-- The partitions that there are.
CREATE TABLE periods (
    period int4 PRIMARY KEY,
    ends_at int8 NOT NULL
);

-- What gateways show each other of recordings that grow. It is never the truth about an outcome and may
-- be lost, so nothing of it is in the log: a crash or a promotion empties these tables.
CREATE UNLOGGED TABLE tails (
    address uuid PRIMARY KEY,
    id uuid NOT NULL,
    claim int8 NOT NULL,
    -- Bytes of the body that lie in full chunks.
    in_chunks int8 NOT NULL,
    shown_at int8 NOT NULL,
    ended bool NOT NULL,
    head bytea
) WITH (fillfactor = 50);
ALTER TABLE tails ALTER head SET STORAGE EXTERNAL;

-- The newest bytes, by where in the body they begin.
CREATE UNLOGGED TABLE frames (
    address uuid NOT NULL REFERENCES tails ON DELETE CASCADE,
    id uuid NOT NULL,
    claim int8 NOT NULL,
    begins_at int8 NOT NULL,
    ends_at int8 NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (address, id, claim, begins_at)
);
ALTER TABLE frames ALTER bytes SET STORAGE EXTERNAL;

-- Which recordings their owners are asked to show.
CREATE UNLOGGED TABLE follows (
    owner int8 NOT NULL,
    address uuid NOT NULL,
    id uuid NOT NULL,
    claim int8 NOT NULL,
    asked_at int8 NOT NULL,
    -- Whether the owner knows.
    heard bool NOT NULL,
    PRIMARY KEY (owner, address)
);
