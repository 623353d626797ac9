-- Asks an owner to show a recording.
--
-- KEYS  what the owner is asked for
-- ARGV  address, milliseconds to keep it

redis.call('SADD', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
tell(KEYS[1])
return 1
