-- Writes to token streams what running jobs say, each entry only while its job's lease holds; tells which jobs that are
-- to run only while somebody waits for them nobody waits for any more.
--
-- ARGV: prefix of the streams' keys, their time to live (s), prefix of the keys by which clients say that they wait,
--       then for each entry: job id, execution id, event, run, at, text, status, result
--   event: 'start', 'text' and 'end' are written; 'ask' asks
-- Returns the ids of abandoned jobs. Running out of memory ends it with the server's error: it may be sent again whole,
-- because a reader knows a piece that it has by its place in the text.
local call = redis.call
local abandoned = {}

local function entry_of(event, run, from, text, status, result)
  local entry = {'event', event, 'run', run}
  local function put(name, value)
    entry[#entry + 1] = name
    entry[#entry + 1] = value
  end
  if event == 'text' then
    put('at', from)
    put('text', text)
  elseif event == 'end' then
    put('status', status)
    if result ~= '' then put('result', result) end
  end
  return entry
end

for at = 4, #ARGV, 8 do
  local id, execution, event = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if call('EXISTS', 'rq:execution:' .. id .. ':' .. execution) == 1 then
    if event == 'ask' then
      if call('EXISTS', ARGV[3] .. id) == 0 then abandoned[#abandoned + 1] = id end
    else
      local stream = ARGV[1] .. id
      local written = redis.pcall('XADD', stream, '*', unpack(entry_of(event, unpack(ARGV, at + 3, at + 7))))
      if type(written) == 'table' and written.err then
        if not string.find(written.err, 'WRONGTYPE', 1, true) then return written end
      else
        call('EXPIRE', stream, ARGV[2])
      end
    end
  end
end
return abandoned
