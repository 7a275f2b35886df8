-- ARGV: worker
-- Returns the records of the other workers that live.
return (living_records(ARGV[1]))
